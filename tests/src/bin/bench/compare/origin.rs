//! What answers behind every contender: the same programs, configured alike.

use std::{fs, process::Command};

use tests::{Pod, Process};

use super::workload::Port;

/// How many programs listen in a server's pod.
pub(crate) const PROGRAMS: usize = 4;

/// Starts them.
pub(crate) fn start(pod: &Pod) -> [Process; PROGRAMS] {
    [
        nginx(pod),
        pod.serves("grpc", Port::Grpc.number()),
        pod.serves("sink", Port::Sink.number()),
        pod.serves("source", Port::Source.number()),
    ]
}

fn nginx(pod: &Pod) -> Process {
    let directory = pod.nginx_directory(Port::Http1.number());
    fs::create_dir_all(&directory).expect("make nginx's directory");
    for (name, length) in [("1k", 1 << 10), ("64k", 64 << 10), ("1m", 1 << 20)] {
        fs::write(directory.join(name), vec![b'x'; length]).expect("write a body");
    }
    let (here, file) = (directory.display(), directory.join("nginx.conf"));
    let (http1, http2) = (Port::Http1.number(), Port::Http2.number());
    let conf = format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {here}/nginx.pid;\n\
         error_log stderr warn;\nevents {{ worker_connections 2048; }}\nhttp {{\n\
         access_log off;\nsendfile on;\ntcp_nopush on;\nkeepalive_requests 100000000;\n\
         client_body_temp_path {here}/body;\nproxy_temp_path {here}/proxy;\n\
         fastcgi_temp_path {here}/fastcgi;\nuwsgi_temp_path {here}/uwsgi;\n\
         scgi_temp_path {here}/scgi;\ndefault_type text/plain;\n\
         server {{\nlisten {http1};\nlisten {http2} http2;\n\
         location = / {{ return 200 \"hello from the origin of the comparison\\n\"; }}\n\
         location / {{ root {here}; }}\n}}\n}}\n"
    );
    fs::write(&file, conf).expect("write nginx.conf");
    let mut command = Command::new("nginx");
    command.arg("-p").arg(&directory).arg("-c").arg(&file);
    pod.starts_listening("nginx", command, &[http1, http2])
}
