package bridge.engine.boot;

import io.kestra.core.server.Service;
import io.micronaut.context.ApplicationContext;
import io.micronaut.runtime.server.EmbeddedServer;
import java.io.IOException;
import java.nio.file.Files;
import java.sql.SQLException;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.atomic.AtomicReference;

/** Kestra in one process: its beans, its database, its storage and its {@link Services}. */
public final class Engine implements AutoCloseable {
    private static final Duration PATIENCE = Duration.ofSeconds(60);

    private final ApplicationContext context;
    private final Services services;

    private Engine(ApplicationContext context) {
        this.context = context;
        this.services = Services.of(context);
    }

    /** Start every service and return once each of them runs. */
    public static Engine start(Settings settings) throws IOException, InterruptedException, SQLException {
        Files.createDirectories(settings.directory().resolve("storage"));
        if (settings.database() == Settings.Database.FILE) {
            Recovery.run(settings);
        }
        var context = ApplicationContext.builder()
            .singletons(settings).properties(properties(settings)).banner(false).start();
        var engine = new Engine(context);
        engine.services.start(settings);
        return engine;
    }

    /** Answer requests from now on. */
    public EmbeddedServer serve() {
        return context.getBean(EmbeddedServer.class).start();
    }

    /** Start one service on a thread of its own, and return once it runs. */
    static void start(Service service, Runnable run) throws InterruptedException {
        var failure = new AtomicReference<Throwable>();
        Thread.ofPlatform().daemon(true).uncaughtExceptionHandler((thread, error) -> failure.set(error)).start(run);
        var deadline = System.nanoTime() + PATIENCE.toNanos();
        while (service.getState() != Service.ServiceState.RUNNING) {
            var name = service.getType().name().toLowerCase();
            if (failure.get() != null) {
                throw new IllegalStateException("Kestra's " + name + " failed to start", failure.get());
            }
            if (System.nanoTime() > deadline) {
                throw new IllegalStateException("Kestra's " + name + " didn't start within " + PATIENCE.toSeconds() + " s");
            }
            Thread.sleep(10);
        }
    }

    private static Map<String, Object> properties(Settings settings) {
        var properties = new HashMap<>(Services.properties());
        properties.put("micronaut.server.host", settings.host());
        properties.put("micronaut.server.port", settings.port());
        properties.put("kestra.url", "http://" + settings.host() + ":" + settings.port() + "/");
        properties.put("endpoints.health.enabled", settings.managementPort() != Settings.NO_PORT);
        if (settings.managementPort() != Settings.NO_PORT) {
            properties.put("endpoints.all.port", settings.managementPort());
        }
        properties.put("datasources.h2.url", settings.jdbcUrl());
        properties.put("datasources.h2.username", Settings.DATABASE_USER);
        properties.put("datasources.h2.password", "");
        properties.put("datasources.h2.driverClassName", "org.h2.Driver");
        properties.put("datasources.h2.maximum-pool-size", 20);
        properties.put("kestra.storage.local.base-path", settings.directory().resolve("storage").toString());
        properties.put("kestra.tasks.tmp-dir.path", settings.directory().resolve("tmp").toString());
        return properties;
    }

    @Override
    public void close() {
        services.close();
        context.close();
    }
}
