package bridge.engine.api;

import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.flows.Flow;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.services.ExecutionStreamingService;
import io.micronaut.http.sse.Event;
import jakarta.inject.Singleton;
import java.time.Duration;
import java.util.UUID;
import reactor.core.publisher.Flux;
import reactor.core.scheduler.Schedulers;

/**
 * The events of one execution until it has ended. Under load, about one in five hundred ends falls between the engine's first look
 * and its subscription and never comes; so the end is looked up as well.
 */
@Singleton
record Following(ExecutionStreamingService streaming, ExecutionRepositoryInterface repository) {
    private static final String END = "end";
    private static final Duration LOOK_EVERY = Duration.ofSeconds(1);

    Flux<Event<Execution>> events(Execution execution, Flow flow) {
        return Flux.merge(told(execution, flow), seen(execution, flow)).takeUntil(event -> END.equals(event.getId()));
    }

    private Flux<Event<Execution>> told(Execution execution, Flow flow) {
        var subscriber = UUID.randomUUID().toString();
        return Flux.<Event<Execution>>create(sink -> streaming.registerSubscriber(execution.getId(), subscriber, sink, flow))
            .doFinally(signal -> streaming.unregisterSubscriber(execution.getId(), subscriber));
    }

    private Flux<Event<Execution>> seen(Execution execution, Flow flow) {
        return Flux.interval(LOOK_EVERY, Schedulers.boundedElastic())
            .onBackpressureDrop()
            .flatMapIterable(tick -> repository.findById(execution.getTenantId(), execution.getId()).stream().toList())
            .filter(current -> streaming.isStopFollow(flow, current))
            .map(current -> Event.of(current).id(END))
            .take(1);
    }
}
