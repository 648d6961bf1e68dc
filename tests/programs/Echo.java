import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;

/** An echo server on one selector of java.nio. */
public final class Echo {
    private static final class Connection {
        final ByteBuffer buffer = ByteBuffer.allocateDirect(1 << 16);
        boolean ended;
    }

    public static void main(String[] arguments) throws IOException {
        Selector selector = Selector.open();
        ServerSocketChannel listener = ServerSocketChannel.open();
        listener.bind(new InetSocketAddress(Integer.parseInt(arguments[0])), 4096);
        listener.configureBlocking(false);
        listener.register(selector, SelectionKey.OP_ACCEPT);
        while (true) {
            selector.select();
            for (SelectionKey key : selector.selectedKeys()) {
                if (key.isAcceptable()) {
                    SocketChannel accepted = listener.accept();
                    if (accepted != null) {
                        accepted.configureBlocking(false);
                        accepted.register(selector, SelectionKey.OP_READ, new Connection());
                    }
                    continue;
                }
                try {
                    serve(key);
                } catch (IOException reset) {
                    key.channel().close();
                }
            }
            selector.selectedKeys().clear();
        }
    }

    /** Reads while there is room, writes while there is data, and waits for just that. */
    private static void serve(SelectionKey key) throws IOException {
        SocketChannel channel = (SocketChannel) key.channel();
        Connection connection = (Connection) key.attachment();
        if (key.isReadable()) {
            connection.ended = channel.read(connection.buffer) < 0;
        }
        connection.buffer.flip();
        channel.write(connection.buffer);
        connection.buffer.compact();
        boolean empty = connection.buffer.position() == 0;
        if (connection.ended && empty) {
            channel.shutdownOutput();
            channel.close();
            return;
        }
        int read = !connection.ended && connection.buffer.hasRemaining() ? SelectionKey.OP_READ : 0;
        key.interestOps(read | (empty ? 0 : SelectionKey.OP_WRITE));
    }
}
