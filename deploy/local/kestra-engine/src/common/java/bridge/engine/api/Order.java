package bridge.engine.api;

import io.kestra.core.debug.Breakpoint;
import io.kestra.core.models.Label;
import io.kestra.core.models.executions.ExecutionKind;
import io.kestra.core.models.flows.Flow;
import io.kestra.core.models.flows.check.Check;
import io.kestra.core.services.FlowService;
import io.micronaut.core.annotation.Nullable;
import io.micronaut.http.multipart.CompletedPart;
import io.micronaut.http.server.multipart.MultipartBody;
import java.time.ZonedDateTime;
import java.util.List;
import java.util.Map;
import org.reactivestreams.Publisher;
import reactor.core.publisher.Flux;

/** An execution that is asked for; what nobody asked for is null. */
record Order(
    Flow flow, List<Label> labels, ExecutionKind kind, ZonedDateTime scheduleDate, List<Breakpoint> breakpoints,
    Publisher<CompletedPart> parts
) {
    /** The parts of a body, which may be missing. */
    static Publisher<CompletedPart> parts(@Nullable MultipartBody body) {
        return body == null ? Flux.empty() : body;
    }

    /** Whether the flow's checks let it be created as failed only; they may also refuse it, by an exception. */
    boolean fails(FlowService flows, Map<String, Object> inputs) {
        var failed = flows.getFailedChecks(flow, inputs);
        if (failed.isEmpty()) {
            return false;
        }
        return switch (Check.resolveBehavior(failed)) {
            case BLOCK_EXECUTION -> throw new IllegalArgumentException(
                "Flow execution blocked: " + String.join(", ", failed.stream().map(Check::getMessage).toList()));
            case FAIL_EXECUTION -> true;
            case CREATE_EXECUTION -> false;
        };
    }
}
