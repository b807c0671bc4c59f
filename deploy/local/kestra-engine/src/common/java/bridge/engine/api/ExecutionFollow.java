package bridge.engine.api;

import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.repositories.FlowRepositoryInterface;
import io.micronaut.http.MediaType;
import io.micronaut.http.annotation.Controller;
import io.micronaut.http.annotation.Get;
import io.micronaut.http.sse.Event;
import java.util.Map;
import reactor.core.publisher.Flux;

/** The state changes of one execution as server-sent events, until it has ended. */
@Controller(Api.EXECUTIONS)
record ExecutionFollow(
    ExecutionRepositoryInterface repository, FlowRepositoryInterface flows, Following following, ExecutionJson json
) {
    @Get(uri = "/{id}/follow", produces = MediaType.TEXT_EVENT_STREAM)
    Flux<Event<Object>> follow(String id) {
        var execution = Executions.find(repository, id);
        var events = following.events(execution, flows.findByExecution(execution));
        return Flux.concat(
            Flux.just(Event.<Object>of(Map.of("id", id)).id("start")),
            events.map(event -> Event.<Object>of(json.whole(event.getData())).id(event.getId())));
    }
}
