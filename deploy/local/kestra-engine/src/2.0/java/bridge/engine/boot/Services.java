package bridge.engine.boot;

import io.kestra.core.runners.Executor;
import io.kestra.core.runners.Indexer;
import io.kestra.core.runners.Scheduler;
import io.kestra.core.runners.Worker;
import io.kestra.worker.systemworker.SystemWorker;
import io.micronaut.context.ApplicationContext;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.util.List;
import java.util.Map;

/** The services of Kestra 2.0: a controller, to which the workers talk over gRPC, executor, workers, scheduler, indexer. */
final class Services implements AutoCloseable {
    private final ApplicationContext context;
    private final LoopbackController controller;

    private Services(ApplicationContext context) {
        this.context = context;
        this.controller = LoopbackController.of(context);
    }

    static Services of(ApplicationContext context) {
        return new Services(context);
    }

    /** Where the controller listens and the workers look for it. */
    static Map<String, Object> properties() {
        var port = freePort();
        return Map.of(
            "kestra.controller.port", port,
            "kestra.worker.controllers.static.endpoints", List.of(Map.of("host", "127.0.0.1", "port", port)));
    }

    /**
     * One after the other: side by side, the worker may look for a controller that isn't there yet. Without the executor,
     * as when its process is down, requests are answered and nothing runs.
     */
    void start(Settings settings) throws InterruptedException {
        Engine.start(controller, controller::start);
        if (settings.executor()) {
            var executor = context.getBean(Executor.class);
            Engine.start(executor, executor::run);
        }
        var worker = context.getBean(Worker.class);
        Engine.start(worker, () -> worker.start(settings.workerThreads()));
        var systemWorker = context.getBean(SystemWorker.class);
        Engine.start(systemWorker, systemWorker::start);
        var scheduler = context.getBean(Scheduler.class);
        Engine.start(scheduler, scheduler::run);
        var indexer = context.getBean(Indexer.class);
        Engine.start(indexer, indexer::run);
    }

    @Override
    public void close() {
        controller.close();
    }

    private static int freePort() {
        try (var probe = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            return probe.getLocalPort();
        } catch (IOException e) {
            throw new UncheckedIOException("no free port on loopback", e);
        }
    }
}
