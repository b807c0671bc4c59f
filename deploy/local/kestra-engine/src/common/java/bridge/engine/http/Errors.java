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
import jakarta.validation.ConstraintViolationException;
import java.io.FileNotFoundException;
import java.nio.file.NoSuchFileException;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.NoSuchElementException;
import java.util.concurrent.TimeoutException;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Turns what Kestra throws into the status and the body that its web server would send. */
final class Errors {
    private static final Logger LOG = LoggerFactory.getLogger("bridge.engine.errors");
    private static final Map<Integer, String> REASONS = Map.of(
        400, "Bad Request", 404, "Not Found", 405, "Method Not Allowed", 409, "Conflict",
        414, "Request-URI Too Long", 415, "Unsupported Media Type", 422, "Unprocessable Entity", 504, "Gateway Timeout");

    private Errors() {
    }

    static Reply reply(Throwable error, String uri) {
        return switch (unwrap(error)) {
            case HttpError e -> body(e.status(), REASONS.getOrDefault(e.status(), "Error"), e.getMessage(), uri);
            case ConstraintViolationException e -> violations(e, uri);
            case InputOutputValidationException e -> invalidInputs(e, uri);
            case NoSuchElementException e -> body(404, "Not Found", e.getMessage(), uri);
            case NotFoundException e -> body(404, "Not Found", e.getMessage(), uri);
            case FileNotFoundException e -> body(404, "Not Found", e.getMessage(), uri);
            case NoSuchFileException e -> body(404, "Not Found", e.getMessage(), uri);
            case ResourceExpiredException e -> body(410, "Resource has expired", e.getMessage(), uri);
            case ConflictException e -> body(409, "Conflict", e.getMessage(), uri);
            case IllegalStateException e -> body(409, "Illegal state", e.getMessage(), uri);
            case InvalidQueryFiltersException e -> body(400, "Bad Request", e.getMessage(), uri);
            case IllegalArgumentException e -> body(422, "Illegal argument", e.getMessage(), uri);
            case ValidationErrorException e -> body(422, "Invalid entity", e.formatedInvalidObjects(), uri);
            case InvalidException e -> body(422, "Invalid entity", e.getMessage(), uri);
            case FlowProcessingException e -> body(422, "Invalid entity", e.getMessage(), uri);
            case DeserializationException e -> body(422, "Invalid entity", e.getMessage(), uri);
            case TimeoutException e -> body(504, "Gateway Timeout", "Operation timed out waiting for state transition", uri);
            case Throwable e -> internal(e, uri);
        };
    }

    /** The exception itself, out of the wrappings that Reactor and lambdas put around a checked one. */
    private static Throwable unwrap(Throwable error) {
        var cause = reactor.core.Exceptions.unwrap(error);
        var wrapped = cause.getClass() == RuntimeException.class || cause instanceof FlowProcessingException;
        return wrapped && cause.getCause() != null ? unwrap(cause.getCause()) : cause;
    }

    private static Reply internal(Throwable error, String uri) {
        LOG.error("{}: {}", uri, error.getMessage(), error);
        return body(500, "Internal server error", error.getMessage(), uri);
    }

    private static Reply violations(ConstraintViolationException error, String uri) {
        var details = error.getConstraintViolations().stream()
            .map(violation -> detail(violation.getMessage(), String.valueOf(violation.getPropertyPath())))
            .toList();
        return invalidEntity(error.getMessage(), details, uri);
    }

    private static Reply invalidInputs(InputOutputValidationException error, String uri) {
        return invalidEntity(error.getMessage(), List.of(Map.of("message", String.valueOf(error.getMessage()))), uri);
    }

    private static Reply invalidEntity(String message, List<Map<String, String>> details, String uri) {
        var body = jsonError("Invalid entity: " + message, uri);
        body.put("_embedded", Map.of("errors", details));
        return Reply.json(422, body);
    }

    private static Map<String, String> detail(String message, String path) {
        var detail = new LinkedHashMap<String, String>();
        detail.put("message", message);
        detail.put("path", path);
        return detail;
    }

    private static Reply body(int status, String reason, String message, String uri) {
        var text = message == null || message.isEmpty() ? reason : reason + ": " + message;
        return Reply.json(status, jsonError(text, uri));
    }

    private static Map<String, Object> jsonError(String message, String uri) {
        var body = new LinkedHashMap<String, Object>();
        body.put("message", message);
        body.put("_links", Map.of("self", List.of(Map.of("href", uri, "templated", false))));
        return body;
    }
}
