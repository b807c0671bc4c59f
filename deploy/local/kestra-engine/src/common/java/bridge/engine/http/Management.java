package bridge.engine.http;

import bridge.engine.boot.Settings;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.Set;

/** What Kestra's web server answers on its management port, as far as containers ask for it: that it is up. */
public final class Management {
    private static final Set<String> HEALTH = Set.of("/health", "/health/liveness", "/health/readiness");
    private static final byte[] UP = "{\"status\":\"UP\"}".getBytes(StandardCharsets.UTF_8);

    private Management() {
    }

    /** Serve from then on if there is to be such a port; to be called once all else runs. */
    public static void start(Settings settings) throws IOException {
        if (settings.managementPort() == Settings.NO_PORT) {
            return;
        }
        var server = HttpServer.create(new InetSocketAddress(settings.host(), settings.managementPort()), 16);
        server.createContext("/", Management::serve);
        server.start();
    }

    private static void serve(HttpExchange exchange) throws IOException {
        try (exchange) {
            if (HEALTH.contains(exchange.getRequestURI().getPath())) {
                exchange.getResponseHeaders().set("Content-Type", "application/json");
                exchange.sendResponseHeaders(200, UP.length);
                exchange.getResponseBody().write(UP);
            } else {
                exchange.sendResponseHeaders(404, -1);
            }
        }
    }
}
