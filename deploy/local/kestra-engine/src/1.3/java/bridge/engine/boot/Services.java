package bridge.engine.boot;

import io.kestra.core.runners.ExecutorInterface;
import io.kestra.core.runners.Indexer;
import io.kestra.core.runners.Scheduler;
import io.kestra.core.utils.IdUtils;
import io.kestra.worker.DefaultWorker;
import io.micronaut.context.ApplicationContext;
import java.util.Map;

/** The services of Kestra 1.3, which talk to each other over the database alone: executor, workers, scheduler, indexer. */
final class Services implements AutoCloseable {
    private final ApplicationContext context;

    private Services(ApplicationContext context) {
        this.context = context;
    }

    static Services of(ApplicationContext context) {
        return new Services(context);
    }

    /** The database's tables are made by Flyway. */
    static Map<String, Object> properties() {
        return Map.of(
            "flyway.datasources.h2.enabled", true,
            "flyway.datasources.h2.locations", "classpath:migrations/h2",
            "flyway.datasources.h2.ignore-migration-patterns", "*:missing,*:future",
            "flyway.datasources.h2.out-of-order", true);
    }

    /** Without the executor, as when its process is down, requests are answered and nothing runs. */
    void start(Settings settings) throws InterruptedException {
        if (settings.executor()) {
            var executor = context.getBean(ExecutorInterface.class);
            Engine.start(executor, executor);
        }
        var worker = context.createBean(DefaultWorker.class, IdUtils.create(), settings.workerThreads(), null);
        Engine.start(worker, worker);
        var scheduler = context.getBean(Scheduler.class);
        Engine.start(scheduler, scheduler);
        var indexer = context.getBean(Indexer.class);
        Engine.start(indexer, indexer);
    }

    @Override
    public void close() {
        // Each of them ends with the context.
    }
}
