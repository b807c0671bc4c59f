package bridge.engine.api;

import static bridge.engine.api.Api.TENANT;

import io.kestra.core.models.Label;
import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.flows.State;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.repositories.FlowRepositoryInterface;
import io.micronaut.core.annotation.Nullable;
import io.micronaut.http.HttpResponse;
import io.micronaut.http.MediaType;
import io.micronaut.http.annotation.Body;
import io.micronaut.http.annotation.Controller;
import io.micronaut.http.annotation.Delete;
import io.micronaut.http.annotation.Post;
import io.micronaut.http.annotation.QueryValue;
import io.micronaut.http.server.multipart.MultipartBody;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.Optional;

/** What can be done to one execution, and when; how it is done is told by {@link Changes}. */
@Controller(Api.EXECUTIONS + Changes.PATH)
record ExecutionActions(ExecutionRepositoryInterface repository, FlowRepositoryInterface flows, Changes changes) {
    /** Kestra's own declaration; whoever accepts {@code application/json} alone gets a 406. */
    @Delete(uri = "/kill", produces = MediaType.TEXT_JSON)
    HttpResponse<?> kill(String id, @QueryValue(defaultValue = "true") boolean isOnKillCascade) throws Exception {
        return changes.kill(find(id), isOnKillCascade);
    }

    @Post("/restart")
    HttpResponse<?> restart(String id, @QueryValue Optional<Integer> revision) throws Exception {
        var execution = find(id);
        return changes.restart(execution, existing(revision, execution));
    }

    @Post("/replay")
    HttpResponse<?> replay(
        String id, @Nullable @QueryValue String taskRunId, @QueryValue Optional<Integer> revision, @Nullable @QueryValue String breakpoints
    ) throws Exception {
        var execution = find(id);
        return changes.replay(execution, taskRunId, existing(revision, execution), breakpoints);
    }

    @Post(uri = "/resume", consumes = MediaType.MULTIPART_FORM_DATA)
    HttpResponse<?> resume(String id, @Nullable @Body MultipartBody inputs) throws Exception {
        var execution = find(id);
        if (!execution.getState().isPaused()) {
            throw new IllegalStateException("Execution is not paused, can't resume it");
        }
        return changes.resume(execution, flows.findByExecution(execution), Order.parts(inputs));
    }

    @Post("/pause")
    HttpResponse<?> pause(String id) throws Exception {
        var execution = find(id);
        if (!execution.getState().isRunning()) {
            throw new IllegalStateException("Execution is not running, can't pause it");
        }
        return changes.pause(execution);
    }

    @Post("/force-run")
    HttpResponse<?> forceRun(String id) throws Exception {
        var execution = find(id);
        if (execution.getState().isTerminated()) {
            throw new IllegalArgumentException("Only non terminated executions can be forced run.");
        }
        return changes.forceRun(execution);
    }

    @Post("/unqueue")
    HttpResponse<?> unqueue(String id, @QueryValue(defaultValue = "RUNNING") State.Type state) throws Exception {
        var execution = find(id);
        if (!execution.getState().isQueued()) {
            throw new IllegalArgumentException("Only QUEUED executions can be unqueued");
        }
        return changes.unqueue(execution, state);
    }

    @Post("/labels")
    HttpResponse<?> labels(String id, @Body List<Label> labels) throws Exception {
        return changes.label(find(id), labels);
    }

    @Post("/change-status")
    HttpResponse<?> changeStatus(String id, @QueryValue State.Type status) throws Exception {
        if (!status.isTerminated()) {
            throw new IllegalArgumentException("You can only change the state of an execution to a terminal state.");
        }
        var execution = find(id);
        if (!execution.getState().isTerminated()) {
            throw new IllegalArgumentException("You can only change the state of a terminated execution.");
        }
        return changes.changeStatus(execution, status);
    }

    private Execution find(String id) {
        return Executions.find(repository, id);
    }

    /** The flow's revision to go on with, which must exist. */
    @Nullable
    private Integer existing(Optional<Integer> revision, Execution execution) {
        if (revision.isPresent() && flows.findById(TENANT, execution.getNamespace(), execution.getFlowId(), revision).isEmpty()) {
            throw new NoSuchElementException("Unable to find revision " + revision.get() + " on flow "
                + execution.getNamespace() + "." + execution.getFlowId());
        }
        return revision.orElse(null);
    }
}
