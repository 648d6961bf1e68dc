// An echo server on Node's streams.
const net = require("node:net");

const server = net.createServer({ allowHalfOpen: true }, (socket) => {
  socket.on("error", () => socket.destroy());
  socket.pipe(socket);
});
server.listen({ host: "0.0.0.0", port: Number(process.argv[2]), backlog: 4096 });
