package bridge.engine.boot;

import io.kestra.core.runners.Executor;
import io.kestra.core.runners.Indexer;
import io.kestra.core.runners.Scheduler;
import io.kestra.core.runners.Worker;
import io.kestra.core.server.Service;
import io.kestra.worker.systemworker.SystemWorker;
import io.micronaut.context.ApplicationContext;
import java.io.IOException;
import java.nio.file.Files;
import java.sql.SQLException;
import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicReference;

/** Kestra's services in one process: controller, executor, workers, scheduler, indexer. */
public final class Engine implements AutoCloseable {
    private static final Duration PATIENCE = Duration.ofSeconds(60);

    private final ApplicationContext context;
    private final LoopbackController controller;

    private Engine(ApplicationContext context) {
        this.context = context;
        this.controller = LoopbackController.of(context);
    }

    /** Start every service and return once each of them runs. */
    public static Engine start(Settings settings) throws IOException, InterruptedException, SQLException {
        Files.createDirectories(settings.directory().resolve("storage"));
        if (settings.database() == Settings.Database.FILE) {
            Recovery.run(settings);
        }
        var context = ApplicationContext.builder().properties(properties(settings)).banner(false).start();
        var engine = new Engine(context);
        engine.startServices(settings.workerThreads());
        return engine;
    }

    /** The beans of Kestra. */
    public ApplicationContext context() {
        return context;
    }

    /** One after the other: side by side, the worker may look for a controller that isn't there yet. */
    private void startServices(int workerThreads) throws InterruptedException {
        start(controller, controller::start);
        var executor = context.getBean(Executor.class);
        start(executor, executor::run);
        var worker = context.getBean(Worker.class);
        start(worker, () -> worker.start(workerThreads));
        var systemWorker = context.getBean(SystemWorker.class);
        start(systemWorker, systemWorker::start);
        var scheduler = context.getBean(Scheduler.class);
        start(scheduler, scheduler::run);
        var indexer = context.getBean(Indexer.class);
        start(indexer, indexer::run);
    }

    private static void start(Service service, Runnable run) throws InterruptedException {
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
        var properties = new HashMap<String, Object>();
        properties.put("datasources.h2.url", settings.jdbcUrl());
        properties.put("datasources.h2.username", Settings.DATABASE_USER);
        properties.put("datasources.h2.password", "");
        properties.put("datasources.h2.driverClassName", "org.h2.Driver");
        properties.put("datasources.h2.maximum-pool-size", 20);
        properties.put("kestra.storage.local.base-path", settings.directory().resolve("storage").toString());
        properties.put("kestra.tasks.tmp-dir.path", settings.directory().resolve("tmp").toString());
        properties.put("kestra.controller.port", settings.grpcPort());
        properties.put("kestra.worker.controllers.static.endpoints", List.of(Map.of("host", "127.0.0.1", "port", settings.grpcPort())));
        return properties;
    }

    @Override
    public void close() {
        controller.close();
        context.close();
    }
}
