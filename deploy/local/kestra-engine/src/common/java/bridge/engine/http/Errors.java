package bridge.engine.http;

import io.kestra.core.exceptions.ConflictException;
import io.kestra.core.exceptions.DeserializationException;
import io.kestra.core.exceptions.FlowProcessingException;
import io.kestra.core.exceptions.InputOutputValidationException;
import io.kestra.core.exceptions.InvalidException;
import io.kestra.core.exceptions.InvalidQueryFiltersException;
import io.kestra.core.exceptions.NotFoundException;
import io.kestra.core.exceptions.ResourceExpiredException;
import io.kestra.core.exceptions.ValidationErrorException;
import io.micronaut.core.convert.exceptions.ConversionErrorException;
import io.micronaut.http.HttpRequest;
import io.micronaut.http.HttpResponse;
import io.micronaut.http.HttpStatus;
import io.micronaut.http.annotation.Controller;
import io.micronaut.http.annotation.Error;
import io.micronaut.http.exceptions.HttpStatusException;
import io.micronaut.http.hateoas.JsonError;
import io.micronaut.http.hateoas.Link;
import io.micronaut.http.hateoas.Resource;
import io.micronaut.web.router.exceptions.UnsatisfiedBodyRouteException;
import io.micronaut.web.router.exceptions.UnsatisfiedRouteException;
import jakarta.validation.ConstraintViolationException;
import java.io.FileNotFoundException;
import java.nio.file.NoSuchFileException;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.concurrent.TimeoutException;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** The status and the words that Kestra's web server has for each exception; the body's form is Micronaut's own. */
@Controller
final class Errors {
    private static final Logger LOG = LoggerFactory.getLogger("bridge.engine.errors");

    @Error(global = true, status = HttpStatus.NOT_FOUND)
    HttpResponse<JsonError> notFound(HttpRequest<?> request) {
        return reply(request, HttpStatus.NOT_FOUND, "Not Found");
    }

    @Error(global = true)
    HttpResponse<JsonError> failed(HttpRequest<?> request, Throwable error) {
        return switch (unwrap(error)) {
            case HttpStatusException e -> reply(request, e.getStatus(), e.getStatus().getReason(), e);
            case ConstraintViolationException e -> violations(request, e);
            case NoSuchElementException e -> reply(request, HttpStatus.NOT_FOUND, "Not Found", e);
            case NotFoundException e -> reply(request, HttpStatus.NOT_FOUND, "Not Found", e);
            case FileNotFoundException e -> reply(request, HttpStatus.NOT_FOUND, "Not Found", e);
            case NoSuchFileException e -> reply(request, HttpStatus.NOT_FOUND, "Not Found", e);
            case ResourceExpiredException e -> reply(request, HttpStatus.GONE, "Resource has expired", e);
            case ConflictException e -> reply(request, HttpStatus.CONFLICT, "Conflict", e);
            case IllegalStateException e -> reply(request, HttpStatus.CONFLICT, "Illegal state", e);
            case UnsatisfiedBodyRouteException e -> reply(request, HttpStatus.UNPROCESSABLE_ENTITY, "Invalid route params", e);
            case UnsatisfiedRouteException e -> reply(request, HttpStatus.BAD_REQUEST, "Bad Request", e);
            case InvalidQueryFiltersException e -> reply(request, HttpStatus.BAD_REQUEST, "Invalid query filters", e);
            case ValidationErrorException e -> reply(request, HttpStatus.BAD_REQUEST, e.formatedInvalidObjects(), e);
            case IllegalArgumentException e -> reply(request, HttpStatus.UNPROCESSABLE_ENTITY, "Illegal argument", e);
            case InputOutputValidationException e -> reply(request, HttpStatus.UNPROCESSABLE_ENTITY, "Invalid entity", e);
            case InvalidException e -> reply(request, HttpStatus.UNPROCESSABLE_ENTITY, "Invalid entity", e);
            case FlowProcessingException e -> reply(request, HttpStatus.UNPROCESSABLE_ENTITY, "Invalid entity", e);
            case DeserializationException e -> reply(request, HttpStatus.UNPROCESSABLE_ENTITY, "Invalid entity", e);
            case ConversionErrorException e -> reply(request, HttpStatus.UNPROCESSABLE_ENTITY, "Internal server error", e);
            case TimeoutException e ->
                reply(request, HttpStatus.GATEWAY_TIMEOUT, "Gateway Timeout: Operation timed out waiting for state transition");
            case Throwable e -> internal(request, e);
        };
    }

    /** The exception itself, out of the wrappings that Reactor and lambdas put around a checked one. */
    private static Throwable unwrap(Throwable error) {
        var cause = reactor.core.Exceptions.unwrap(error);
        var wrapped = cause.getClass() == RuntimeException.class || cause instanceof FlowProcessingException;
        return wrapped && cause.getCause() != null ? unwrap(cause.getCause()) : cause;
    }

    private static HttpResponse<JsonError> internal(HttpRequest<?> request, Throwable error) {
        LOG.error("{}: {}", request.getUri(), error.getMessage(), error);
        return reply(request, HttpStatus.INTERNAL_SERVER_ERROR, "Internal server error", error);
    }

    private static HttpResponse<JsonError> violations(HttpRequest<?> request, ConstraintViolationException error) {
        List<Resource> details = error.getConstraintViolations().stream()
            .map(violation -> (Resource) new JsonError(violation.getMessage()).path(violation.getPropertyPath().toString()))
            .toList();
        var reply = reply(request, HttpStatus.UNPROCESSABLE_ENTITY, "Invalid entity", error);
        reply.body().embedded("errors", details);
        return reply;
    }

    private static HttpResponse<JsonError> reply(HttpRequest<?> request, HttpStatus status, String reason, Throwable error) {
        return reply(request, status, error.getMessage() == null ? reason : reason + ": " + error.getMessage());
    }

    private static HttpResponse<JsonError> reply(HttpRequest<?> request, HttpStatus status, String message) {
        return HttpResponse.<JsonError>status(status).body(new JsonError(message).link(Link.SELF, Link.of(request.getUri())));
    }
}
