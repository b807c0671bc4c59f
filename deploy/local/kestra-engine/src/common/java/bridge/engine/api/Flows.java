package bridge.engine.api;

import static bridge.engine.api.Api.TENANT;

import io.kestra.core.models.QueryFilter;
import io.kestra.core.models.flows.FlowSource;
import io.kestra.core.models.flows.FlowWithSource;
import io.kestra.core.models.flows.GenericFlow;
import io.kestra.core.repositories.FlowRepositoryInterface;
import io.kestra.core.services.FlowService;
import io.micronaut.core.annotation.Nullable;
import io.micronaut.http.HttpRequest;
import io.micronaut.http.HttpStatus;
import io.micronaut.http.MediaType;
import io.micronaut.http.annotation.Body;
import io.micronaut.http.annotation.Controller;
import io.micronaut.http.annotation.Delete;
import io.micronaut.http.annotation.Get;
import io.micronaut.http.annotation.Post;
import io.micronaut.http.annotation.Put;
import io.micronaut.http.annotation.QueryValue;
import io.micronaut.http.annotation.Status;
import io.micronaut.validation.Validated;
import jakarta.validation.constraints.Min;
import java.util.Arrays;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.Optional;
import java.util.function.Function;

/** Flows: create, read, update, delete, validate, search. */
@Controller(Api.ROOT + "/flows")
@Validated
class Flows {
    private static final String DOCUMENT_END = "\\n+---\\n*?";

    private final FlowService service;
    private final FlowStore store;
    private final FlowRepositoryInterface repository;

    Flows(FlowService service, FlowStore store, FlowRepositoryInterface repository) {
        this.service = service;
        this.store = store;
        this.repository = repository;
    }

    @Post(consumes = MediaType.APPLICATION_YAML)
    Object create(@Body String source) throws Exception {
        return store.create(GenericFlow.fromYaml(TENANT, source));
    }

    @Put(uri = "/{namespace}/{id}", consumes = MediaType.APPLICATION_YAML)
    Object update(String namespace, String id, @Body String source) throws Exception {
        var previous = find(namespace, id);
        return store.update(GenericFlow.fromYaml(TENANT, source), previous);
    }

    @Get("/{namespace}/{id}")
    Object get(
        String namespace, String id, @QueryValue Optional<Integer> revision, @QueryValue(defaultValue = "false") boolean source
    ) {
        var flow = repository.findByIdWithSource(TENANT, namespace, id, revision).orElseThrow(Flows::unknown);
        return source ? flow : flow.toFlow();
    }

    @Delete("/{namespace}/{id}")
    @Status(HttpStatus.NO_CONTENT)
    void delete(String namespace, String id) {
        service.delete(find(namespace, id));
    }

    @Get("/{namespace}")
    Object list(String namespace) {
        return repository.findByNamespace(TENANT, namespace);
    }

    @Get("/search")
    Object searchFlows(
        HttpRequest<?> request, @QueryValue(defaultValue = "1") @Min(1) int page,
        @QueryValue(defaultValue = "10") @Min(1) int size, @Nullable @QueryValue List<String> sort
    ) {
        var filters = Filters.of(request.getParameters(), QueryFilter.Resource.FLOW);
        var found = repository.find(Pages.of(page, size, sort, Function.identity()), TENANT, filters);
        return new Pages.Results(found, found.getTotal());
    }

    @Post(uri = "/validate", consumes = MediaType.APPLICATION_YAML)
    Object validate(@Body String text) {
        var sources = Arrays.stream(text.split(DOCUMENT_END))
            .filter(source -> !source.isBlank())
            .map(source -> new FlowSource(null, source))
            .toList();
        return service.validate(TENANT, List.copyOf(sources));
    }

    private FlowWithSource find(String namespace, String id) {
        return repository.findByIdWithSource(TENANT, namespace, id).orElseThrow(Flows::unknown);
    }

    private static NoSuchElementException unknown() {
        return new NoSuchElementException();
    }
}
