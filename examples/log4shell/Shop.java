import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import org.apache.logging.log4j.LogManager;
import org.apache.logging.log4j.Logger;

/** A small service that logs what it is asked, as very many services did. */
public final class Shop {
    private static final Logger LOG = LogManager.getLogger(Shop.class);
    private static final String STARTED = Long.toString(ProcessHandle.current().pid());

    public static void main(String[] args) throws IOException {
        InetSocketAddress address = new InetSocketAddress(InetAddress.getLoopbackAddress(), Integer.parseInt(args[0]));
        HttpServer server = HttpServer.create(address, 0);
        server.createContext("/healthz", exchange -> answer(exchange, "ok"));
        server.createContext("/pid", exchange -> answer(exchange, STARTED));
        server.createContext("/search", exchange -> {
            String query = exchange.getRequestURI().getRawQuery();
            LOG.error("nothing found for {}", URLDecoder.decode(query, StandardCharsets.UTF_8));
            answer(exchange, "nothing found");
        });
        server.start();
        System.out.println("shop listens on " + address);
    }

    private static void answer(HttpExchange exchange, String text) throws IOException {
        byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
        exchange.sendResponseHeaders(200, bytes.length);
        exchange.getResponseBody().write(bytes);
        exchange.close();
    }
}
