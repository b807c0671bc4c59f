package bridge.engine.api;

import static bridge.engine.api.Api.TENANT;

import io.kestra.core.debug.Breakpoint;
import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.executions.ExecutionKind;
import io.kestra.core.models.flows.Flow;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.services.ExecutionService;
import io.kestra.core.services.FlowService;
import io.micronaut.core.annotation.Nullable;
import io.micronaut.core.convert.format.Format;
import io.micronaut.http.HttpStatus;
import io.micronaut.http.MediaType;
import io.micronaut.http.annotation.Body;
import io.micronaut.http.annotation.Controller;
import io.micronaut.http.annotation.Delete;
import io.micronaut.http.annotation.Get;
import io.micronaut.http.annotation.Post;
import io.micronaut.http.annotation.QueryValue;
import io.micronaut.http.annotation.Status;
import io.micronaut.http.server.multipart.MultipartBody;
import io.micronaut.http.sse.Event;
import java.io.IOException;
import java.time.Duration;
import java.time.ZonedDateTime;
import java.util.Arrays;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.Optional;

/** Executions: create, look up and delete. */
@Controller(Api.EXECUTIONS)
record Executions(
    FlowService flows, ExecutionRepositoryInterface repository, ExecutionService service, Following following, Creation creation,
    ExecutionJson json
) {
    private static final Duration LONGEST_WAIT = Duration.ofHours(1);

    @Get("/{id}")
    Object get(String id) {
        return json.whole(find(repository, id));
    }

    /** Out of the database, with its logs, metrics and files unless the request keeps them; nothing stops what runs. */
    @Delete("/{id}")
    @Status(HttpStatus.NO_CONTENT)
    void delete(
        String id, @QueryValue(defaultValue = "true") boolean deleteLogs, @QueryValue(defaultValue = "true") boolean deleteMetrics,
        @QueryValue(defaultValue = "true") boolean deleteStorage
    ) throws IOException {
        service.delete(find(repository, id), deleteLogs, deleteMetrics, deleteStorage);
    }

    static Execution find(ExecutionRepositoryInterface repository, String id) {
        return repository.findById(TENANT, id).orElseThrow(() -> new NoSuchElementException());
    }

    @Post(uri = "/{namespace}/{flowId}", consumes = MediaType.MULTIPART_FORM_DATA)
    Object create(
        String namespace, String flowId, @QueryValue Optional<Integer> revision, @Nullable @QueryValue @Format("MULTI") List<String> labels,
        @Nullable @QueryValue ExecutionKind kind, @Nullable @QueryValue ZonedDateTime scheduleDate,
        @Nullable @QueryValue String breakpoints, @QueryValue(defaultValue = "false") boolean wait, @Nullable @Body MultipartBody inputs
    ) throws Exception {
        var flow = flows.getFlowIfExecutableOrThrow(TENANT, namespace, flowId, revision);
        var order = new Order(flow, Labels.parse(labels), kind, scheduleDate, breakpoints(breakpoints), Order.parts(inputs));
        var execution = creation.create(order);
        return json.created(wait ? await(execution, flow) : execution);
    }

    private Execution await(Execution execution, Flow flow) {
        return following.events(execution, flow).last().map(Event::getData).block(LONGEST_WAIT);
    }

    /** The breakpoints of a comma-separated list; null where there is none. */
    @Nullable
    static List<Breakpoint> breakpoints(@Nullable String text) {
        return text == null ? null : Arrays.stream(text.split(",")).map(Breakpoint::of).toList();
    }
}
