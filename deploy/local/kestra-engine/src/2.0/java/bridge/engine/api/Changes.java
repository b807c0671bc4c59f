package bridge.engine.api;

import io.kestra.core.exceptions.ConflictException;
import io.kestra.core.executor.command.ExecutionCommand;
import io.kestra.core.executor.command.ForceRun;
import io.kestra.core.executor.command.Pause;
import io.kestra.core.executor.command.Replay;
import io.kestra.core.executor.command.Restart;
import io.kestra.core.executor.command.Resume;
import io.kestra.core.executor.command.Unqueue;
import io.kestra.core.executor.command.UpdateLabels;
import io.kestra.core.executor.command.UpdateStatus;
import io.kestra.core.models.Label;
import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.flows.Flow;
import io.kestra.core.models.flows.State;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.services.ExecutionService;
import io.kestra.core.utils.IdUtils;
import io.micronaut.http.HttpResponse;
import io.micronaut.http.multipart.CompletedPart;
import jakarta.inject.Singleton;
import java.util.List;
import java.util.function.Function;
import org.reactivestreams.Publisher;
import reactor.core.publisher.Flux;

/** Changes an execution as Kestra 2.0 does: by a command; the answer is the execution once the executor has carried it out. */
@Singleton
record Changes(ExecutionRepositoryInterface repository, ExecutionService service, Commands commands, ExecutionJson json) {
    static final String PATH = "/{id}/actions";

    HttpResponse<?> kill(Execution execution, boolean cascade) throws Exception {
        if (execution.getState().isTerminated() && !cascade) {
            throw new ConflictException("Cannot kill execution: execution is already terminated.");
        }
        commands.kill(execution.getId(), cascade);
        return show(execution.getId());
    }

    HttpResponse<?> restart(Execution execution, Integer revision) throws Exception {
        return send(execution, id -> Restart.from(execution, revision).withOperationId(id));
    }

    HttpResponse<?> replay(Execution execution, String taskRunId, Integer revision, String breakpoints) throws Exception {
        var replayId = IdUtils.create();
        var replay = Replay.from(execution, replayId, taskRunId, revision, breakpoints);
        commands.send(replayId, replay::withOperationId);
        return show(replayId);
    }

    HttpResponse<?> resume(Execution execution, Flow flow, Publisher<CompletedPart> parts) throws Exception {
        var inputs = service.readInputs(execution, flow, Flux.from(parts)).block();
        var resumed = io.kestra.plugin.core.flow.Pause.Resumed.now();
        return send(execution, id -> Resume.from(execution, resumed, inputs).withOperationId(id));
    }

    HttpResponse<?> pause(Execution execution) throws Exception {
        return send(execution, id -> Pause.from(execution).withOperationId(id));
    }

    HttpResponse<?> forceRun(Execution execution) throws Exception {
        return send(execution, id -> ForceRun.from(execution).withOperationId(id));
    }

    HttpResponse<?> unqueue(Execution execution, State.Type state) throws Exception {
        return send(execution, id -> Unqueue.from(execution, state).withOperationId(id));
    }

    HttpResponse<?> label(Execution execution, List<Label> labels) throws Exception {
        return send(execution, id -> UpdateLabels.from(execution, labels).withOperationId(id));
    }

    HttpResponse<?> changeStatus(Execution execution, State.Type state) throws Exception {
        return send(execution, id -> UpdateStatus.from(execution, state).withOperationId(id));
    }

    private HttpResponse<?> send(Execution execution, Function<String, ExecutionCommand> command) throws Exception {
        commands.send(execution.getId(), command);
        return show(execution.getId());
    }

    private HttpResponse<?> show(String id) {
        return HttpResponse.ok(json.changed(Executions.find(repository, id)));
    }
}
