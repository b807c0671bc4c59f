package bridge.engine.api;

import io.kestra.core.async.AsyncOperationProcessedEvent;
import io.kestra.core.async.AsyncOperationsConfiguration;
import io.kestra.core.exceptions.ConflictException;
import io.kestra.core.executor.command.ExecutionCommand;
import io.kestra.core.models.executions.ExecutionKilled;
import io.kestra.core.models.executions.ExecutionKilledExecution;
import io.kestra.core.queues.BroadcastQueueInterface;
import io.kestra.core.queues.DispatchQueueInterface;
import io.kestra.core.queues.QueueException;
import io.kestra.core.services.AsyncOperationWaiter;
import jakarta.inject.Singleton;
import java.util.concurrent.TimeoutException;
import java.util.function.Function;
import reactor.core.Exceptions;

/** Hands a command to the executor and waits until it was carried out, as 2.0 does for every change of one execution. */
@Singleton
record Commands(
    DispatchQueueInterface<ExecutionCommand> commands, BroadcastQueueInterface<ExecutionKilled> kills, AsyncOperationWaiter waiter,
    AsyncOperationsConfiguration patience
) {
    private interface Emitter {
        void emit(String operationId) throws QueueException;
    }

    /**
     * Send the command for an execution under a fresh operation id.
     *
     * @throws TimeoutException the executor didn't confirm in time; it may still carry the command out
     */
    void send(String executionId, Function<String, ExecutionCommand> command) throws TimeoutException {
        await(executionId, operationId -> commands.emit(command.apply(operationId)));
    }

    /** Ask for the end of an execution, and of its children when it cascades. */
    void kill(String executionId, boolean cascade) throws TimeoutException {
        await(executionId, operationId -> kills.emit(ExecutionKilledExecution.builder()
            .tenantId(Api.TENANT)
            .state(ExecutionKilled.State.REQUESTED)
            .executionId(executionId)
            .isOnKillCascade(cascade)
            .operationId(operationId)
            .build()));
    }

    private void await(String executionId, Emitter emitter) throws TimeoutException {
        var processed = waiter.submitAndWait(executionId, operationId -> {
            try {
                emitter.emit(operationId);
            } catch (QueueException e) {
                throw Exceptions.propagate(e);
            }
        }, patience.waitTimeout());
        if (processed.outcome() == AsyncOperationProcessedEvent.Outcome.FAILED) {
            throw new ConflictException("Operation on execution '" + executionId + "' failed: " + processed.error());
        }
    }
}
