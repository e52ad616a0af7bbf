import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.file.Files;
import java.nio.file.Path;

/** Counts connections on a loopback port and closes each: where an attacker's directory server would have answered. */
public final class Counter {
    public static void main(String[] args) throws IOException {
        Path count = Path.of(args[1]);
        int seen = 0;
        try (ServerSocket server = new ServerSocket(0, 50, InetAddress.getLoopbackAddress())) {
            Files.writeString(Path.of(args[0]), Integer.toString(server.getLocalPort()));
            Files.writeString(count, "0");
            while (true) {
                try (Socket ignored = server.accept()) {
                    seen++;
                    Path spare = Path.of(count + ".new");
                    Files.writeString(spare, Integer.toString(seen));
                    Files.move(spare, count, java.nio.file.StandardCopyOption.REPLACE_EXISTING);
                }
            }
        }
    }
}
