package bridge.engine;

import bridge.engine.boot.Engine;
import bridge.engine.boot.Settings;
import io.micronaut.runtime.server.EmbeddedServer;
import java.util.concurrent.TimeUnit;

/** Starts the engine and its façade, says so in one line, and serves until it is told to end. */
public final class Main {
    private static final long STOP_SECONDS = 20;

    private Main() {
    }

    public static void main(String[] arguments) throws InterruptedException {
        try {
            var settings = Settings.read();
            var engine = Engine.start(settings);
            var server = engine.serve();
            Runtime.getRuntime().addShutdownHook(new Thread(() -> stop(server, engine), "stop"));
            System.out.println("READY " + server.getURL());
        } catch (Throwable e) {
            System.err.println("Kestra's engine didn't start: " + reason(e));
            // Kestra has started threads by now that would keep the process alive.
            Runtime.getRuntime().halt(1);
        }
        Thread.currentThread().join();
    }

    private static void stop(EmbeddedServer server, Engine engine) {
        server.stop();
        var closing = Thread.ofPlatform().daemon(true).start(engine::close);
        try {
            closing.join(TimeUnit.SECONDS.toMillis(STOP_SECONDS));
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
        Runtime.getRuntime().halt(0);
    }

    private static String reason(Throwable error) {
        var cause = error;
        while (cause.getCause() != null) {
            cause = cause.getCause();
        }
        return (cause.getClass().getSimpleName() + ": " + cause.getMessage()).lines().findFirst().orElse("");
    }
}
