package bridge.engine.api;

import bridge.engine.http.HttpError;
import io.kestra.core.async.AsyncOperationProcessedEvent;
import io.kestra.core.async.AsyncOperationsConfiguration;
import io.kestra.core.executor.command.ExecutionCommand;
import io.kestra.core.models.executions.ExecutionKilled;
import io.kestra.core.models.executions.ExecutionKilledExecution;
import io.kestra.core.queues.BroadcastQueueInterface;
import io.kestra.core.queues.DispatchQueueInterface;
import io.kestra.core.queues.QueueException;
import io.kestra.core.services.AsyncOperationWaiter;
import io.micronaut.context.ApplicationContext;
import io.micronaut.core.type.Argument;
import java.time.Duration;
import java.util.concurrent.TimeoutException;
import java.util.function.Function;
import reactor.core.Exceptions;

/** Hands a command to the executor and waits until it was carried out, as 2.0 does for every change of one execution. */
final class Commands {
    private interface Emitter {
        void emit(String operationId) throws QueueException;
    }

    private final DispatchQueueInterface<ExecutionCommand> commands;
    private final BroadcastQueueInterface<ExecutionKilled> kills;
    private final AsyncOperationWaiter waiter;
    private final Duration patience;

    @SuppressWarnings("unchecked")
    Commands(ApplicationContext context) {
        this.commands = context.getBean(Argument.of(DispatchQueueInterface.class, ExecutionCommand.class));
        this.kills = context.getBean(Argument.of(BroadcastQueueInterface.class, ExecutionKilled.class));
        this.waiter = context.getBean(AsyncOperationWaiter.class);
        this.patience = context.getBean(AsyncOperationsConfiguration.class).waitTimeout();
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
            .tenantId(Routes.TENANT)
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
        }, patience);
        if (processed.outcome() == AsyncOperationProcessedEvent.Outcome.FAILED) {
            throw new HttpError(409, "Operation on execution '" + executionId + "' failed: " + processed.error());
        }
    }
}
