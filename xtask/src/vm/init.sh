#!/bin/sh
# The guest's only process before `smoke`, whose lines go to the console.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root MESH_TEST_PATIENCE=8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mkdir -p /dev/shm /run/netns /var/run
ln -sf /proc/self/fd /dev/fd
while read -r module; do
    [ -z "$module" ] || insmod "/modules/$module.ko" || echo "vm: no module $module"
done </modules/order
ip link set lo up
ulimit -n 65536
/mesh/smoke
echo "vm: smoke ended with $?"
reboot -f
