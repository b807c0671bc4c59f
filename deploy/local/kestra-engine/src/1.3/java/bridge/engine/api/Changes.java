package bridge.engine.api;

import bridge.engine.http.Reply;
import io.kestra.core.debug.Breakpoint;
import io.kestra.core.models.Label;
import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.flows.Flow;
import io.kestra.core.models.flows.State;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.repositories.FlowRepositoryInterface;
import io.kestra.core.services.ConcurrencyLimitService;
import io.kestra.core.services.ExecutionService;
import io.kestra.plugin.core.flow.Pause;
import io.micronaut.context.ApplicationContext;
import io.micronaut.http.multipart.CompletedPart;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import reactor.core.publisher.Flux;

/** Changes an execution as Kestra 1.3 does: it queues the execution's next state; the executor comes to it later. */
final class Changes {
    static final String PATH = "/executions/{id}/";

    private final ExecutionRepositoryInterface repository;
    private final FlowRepositoryInterface flows;
    private final ExecutionService service;
    private final ConcurrencyLimitService limits;
    private final Queues queues;

    Changes(ApplicationContext context) {
        this.repository = context.getBean(ExecutionRepositoryInterface.class);
        this.flows = context.getBean(FlowRepositoryInterface.class);
        this.service = context.getBean(ExecutionService.class);
        this.limits = context.getBean(ConcurrencyLimitService.class);
        this.queues = new Queues(context);
    }

    /** Whatever comes of it: 202. */
    Reply kill(Execution execution, boolean cascade) throws Exception {
        queues.kill(execution.getId(), cascade);
        return Reply.empty(202);
    }

    Reply restart(Execution execution, Integer revision) throws Exception {
        return send(service.restart(execution, revision));
    }

    Reply replay(Execution execution, String taskRunId, Integer revision, String breakpoints) throws Exception {
        var replay = service.replay(execution, flows.findByExecution(execution), taskRunId, revision);
        var reply = send(breakpoints == null ? replay : replay.withBreakpoints(
            Arrays.stream(breakpoints.split(",")).map(Breakpoint::of).toList()));
        label(execution, List.of(new Label(Label.REPLAYED, "true")));
        return reply;
    }

    Reply resume(Execution execution, Flow flow, List<CompletedPart> parts) throws Exception {
        queues.send(service.resume(execution, flow, State.Type.RUNNING, Flux.fromIterable(parts), Pause.Resumed.now()).block());
        return Reply.empty(204);
    }

    Reply pause(Execution execution) throws Exception {
        queues.send(service.pause(execution));
        return Reply.empty(204);
    }

    Reply forceRun(Execution execution) throws Exception {
        return send(service.forceRun(execution));
    }

    Reply unqueue(Execution execution, State.Type state) throws Exception {
        return send(limits.unqueue(execution, state));
    }

    Reply label(Execution execution, List<Label> labels) {
        var all = Stream.concat(execution.getLabels().stream(), labels.stream()).toList();
        return Reply.ok(ExecutionJson.whole(repository.save(execution.withLabels(all))));
    }

    Reply changeStatus(Execution execution, State.Type state) throws Exception {
        return send(execution.withState(state));
    }

    private Reply send(Execution execution) throws Exception {
        return Reply.ok(ExecutionJson.whole(queues.send(execution)));
    }
}
