package bridge.engine.http;

import bridge.engine.api.Routes;
import bridge.engine.boot.Settings;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import io.micronaut.context.ApplicationContext;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.util.Map;
import java.util.concurrent.Executors;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Our own HTTP server in front of Kestra's engine, which speaks Kestra's REST paths. */
public final class Facade {
    private static final Logger LOG = LoggerFactory.getLogger(Facade.class);
    private static final String API = "/api/v1/";
    private static final String TENANT = "main";
    /** What Netty, under Kestra's web server, takes for a request line. */
    private static final int LONGEST_REQUEST_LINE = 4096;

    private final HttpServer server;
    private final BasicAuth auth;
    private final Router router;

    private Facade(HttpServer server, BasicAuth auth, Router router) {
        this.server = server;
        this.auth = auth;
        this.router = router;
    }

    /** Bind the port and serve from then on. */
    public static Facade start(Settings settings, ApplicationContext context) throws IOException {
        // Small answers on connections that are kept: without the first, each waits 40 ms for the client's acknowledgement.
        System.setProperty("sun.net.httpserver.nodelay", "true");
        System.setProperty("sun.net.httpserver.idleInterval", "3600");
        System.setProperty("sun.net.httpserver.maxIdleConnections", "1000");
        var address = new InetSocketAddress(settings.host(), settings.port());
        var server = HttpServer.create(address, 256);
        var auth = new BasicAuth(settings.username(), settings.password());
        var facade = new Facade(server, auth, Routes.all(context));
        server.setExecutor(Executors.newVirtualThreadPerTaskExecutor());
        server.createContext("/", facade::serve);
        server.start();
        return facade;
    }

    public String url() {
        return "http://" + server.getAddress().getHostString() + ":" + server.getAddress().getPort();
    }

    /** Stop taking requests. */
    public void stop() {
        server.stop(0);
    }

    private void serve(HttpExchange exchange) {
        try (exchange) {
            send(exchange, answer(exchange));
        } catch (IOException e) {
            LOG.debug("The client went away: {}", e.getMessage());
        }
    }

    private Reply answer(HttpExchange exchange) {
        var uri = exchange.getRequestURI();
        try {
            if (requestLine(exchange) > LONGEST_REQUEST_LINE) {
                return Errors.reply(new HttpError(414, ""), uri.getRawPath());
            }
            var path = uri.getRawPath();
            if (!auth.admits(path, exchange.getRequestHeaders().getFirst("Authorization"))) {
                return new Reply(401, Map.of("WWW-Authenticate", "Basic"), new byte[0], null);
            }
            if (path.equals("/ping")) {
                return Reply.text("pong");
            }
            var match = router.find(exchange.getRequestMethod(), withinTenant(path));
            return match.handler().handle(new Request(exchange, match.variables()));
        } catch (Throwable e) {
            return Errors.reply(e, uri.toString());
        }
    }

    private static int requestLine(HttpExchange exchange) {
        return exchange.getRequestMethod().length() + exchange.getRequestURI().toString().length() + exchange.getProtocol().length() + 2;
    }

    /** The path below the tenant, which may be left out. */
    private String withinTenant(String path) {
        if (!path.startsWith(API)) {
            throw new HttpError(404, "");
        }
        var rest = path.substring(API.length() - 1);
        var first = rest.substring(1).split("/", 2)[0];
        if (first.equals(TENANT)) {
            return rest.substring(1 + TENANT.length());
        }
        if (router.knows(first)) {
            return rest;
        }
        throw new HttpError(400, "Tenant must be 'main'");
    }

    private static void send(HttpExchange exchange, Reply reply) throws IOException {
        // What is left of the body must be read, or the connection can't serve the next request.
        exchange.getRequestBody().skip(Long.MAX_VALUE);
        reply.headers().forEach(exchange.getResponseHeaders()::set);
        if (reply.stream() != null) {
            exchange.sendResponseHeaders(reply.status(), 0);
            reply.stream().writeTo(exchange.getResponseBody());
        } else if (reply.body().length == 0) {
            exchange.sendResponseHeaders(reply.status(), -1);
        } else {
            exchange.sendResponseHeaders(reply.status(), reply.body().length);
            exchange.getResponseBody().write(reply.body());
        }
    }
}
