package bridge.engine.api;

import io.kestra.core.models.Label;
import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.flows.Flow;
import io.kestra.core.models.flows.State;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.repositories.FlowRepositoryInterface;
import io.kestra.core.services.ConcurrencyLimitService;
import io.kestra.core.services.ExecutionService;
import io.kestra.plugin.core.flow.Pause;
import io.micronaut.http.HttpResponse;
import io.micronaut.http.multipart.CompletedPart;
import jakarta.inject.Singleton;
import java.util.List;
import java.util.stream.Stream;
import org.reactivestreams.Publisher;
import reactor.core.publisher.Flux;

/** Changes an execution as Kestra 1.3 does: it queues the execution's next state; the executor comes to it later. */
@Singleton
record Changes(
    ExecutionRepositoryInterface repository, FlowRepositoryInterface flows, ExecutionService service, ConcurrencyLimitService limits,
    Queues queues, ExecutionJson json
) {
    static final String PATH = "/{id}";

    /** Whatever comes of it: 202, without a body. */
    HttpResponse<?> kill(Execution execution, boolean cascade) throws Exception {
        if (execution.getState().isTerminated() && !cascade) {
            throw new IllegalStateException("Execution is already finished, can't kill it");
        }
        queues.kill(execution.getId(), cascade);
        return HttpResponse.accepted();
    }

    HttpResponse<?> restart(Execution execution, Integer revision) throws Exception {
        return send(service.restart(execution, revision));
    }

    HttpResponse<?> replay(Execution execution, String taskRunId, Integer revision, String breakpoints) throws Exception {
        var replay = service.replay(execution, flows.findByExecution(execution), taskRunId, revision);
        var reply = send(breakpoints == null ? replay : replay.withBreakpoints(Executions.breakpoints(breakpoints)));
        label(execution, List.of(new Label(Label.REPLAYED, "true")));
        return reply;
    }

    HttpResponse<?> resume(Execution execution, Flow flow, Publisher<CompletedPart> parts) throws Exception {
        queues.send(service.resume(execution, flow, State.Type.RUNNING, Flux.from(parts), Pause.Resumed.now()).block());
        return HttpResponse.noContent();
    }

    HttpResponse<?> pause(Execution execution) throws Exception {
        queues.send(service.pause(execution));
        return HttpResponse.noContent();
    }

    HttpResponse<?> forceRun(Execution execution) throws Exception {
        return send(service.forceRun(execution));
    }

    HttpResponse<?> unqueue(Execution execution, State.Type state) throws Exception {
        return send(limits.unqueue(execution, state));
    }

    HttpResponse<?> label(Execution execution, List<Label> labels) {
        var all = Stream.concat(execution.getLabels().stream(), labels.stream()).toList();
        return HttpResponse.ok(json.changed(repository.save(execution.withLabels(all))));
    }

    HttpResponse<?> changeStatus(Execution execution, State.Type state) throws Exception {
        return send(execution.withState(state));
    }

    private HttpResponse<?> send(Execution execution) throws Exception {
        return HttpResponse.ok(json.changed(queues.send(execution)));
    }
}
