package bridge.engine.http;

import io.micronaut.http.MediaType;
import io.micronaut.http.multipart.CompletedFileUpload;
import io.micronaut.http.multipart.CompletedPart;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.regex.Pattern;

/** The parts of a {@code multipart/form-data} body, as the type that Kestra reads inputs from. */
public final class Multipart {
    private static final String FORM = "multipart/form-data";
    private static final Pattern BOUNDARY = Pattern.compile("boundary=\"?([^\";,]+)\"?", Pattern.CASE_INSENSITIVE);
    private static final Pattern NAME = Pattern.compile("[; ]name=\"((?:[^\"\\\\]|\\\\.)*)\"");
    private static final Pattern FILENAME = Pattern.compile("filename=\"((?:[^\"\\\\]|\\\\.)*)\"");
    private static final Pattern TYPE = Pattern.compile("(?im)^content-type:\\s*([^\\r\\n]+)");

    private Multipart() {
    }

    /** The parts of a request; none when it has no body; any other content type is a 415. */
    public static List<CompletedPart> of(Request request) throws IOException {
        var type = request.header("Content-Type").orElse("");
        if (type.toLowerCase().startsWith(FORM)) {
            var boundary = BOUNDARY.matcher(type);
            if (!boundary.find()) {
                throw new HttpError(400, "No multipart boundary");
            }
            return parse(request.body(), boundary.group(1));
        }
        if (!type.isEmpty()) {
            throw new HttpError(415, "Content Type [" + type + "] not allowed. Allowed types: [" + FORM + "]");
        }
        return List.of();
    }

    private static List<CompletedPart> parse(byte[] body, String boundary) {
        var delimiter = ("\r\n--" + boundary).getBytes(StandardCharsets.ISO_8859_1);
        // The first delimiter has no line before it.
        var at = indexOf(body, Arrays.copyOfRange(delimiter, 2, delimiter.length), 0);
        var parts = new ArrayList<CompletedPart>();
        var start = at < 0 ? -1 : at + delimiter.length - 2;
        while (start >= 0 && !startsWith(body, start, "--")) {
            var end = indexOf(body, delimiter, start);
            if (end < 0) {
                throw new HttpError(400, "The multipart body ends too soon");
            }
            parts.add(part(body, start, end));
            start = end + delimiter.length;
        }
        return parts;
    }

    private static CompletedPart part(byte[] body, int start, int end) {
        var blank = indexOf(body, "\r\n\r\n".getBytes(StandardCharsets.ISO_8859_1), start);
        if (blank < 0 || blank > end) {
            throw new HttpError(400, "A part of the multipart body has no headers");
        }
        var head = new String(body, start, blank - start, StandardCharsets.UTF_8);
        var name = NAME.matcher(head);
        if (!name.find()) {
            throw new HttpError(400, "A part of the multipart body has no name");
        }
        var content = Arrays.copyOfRange(body, Math.min(blank + 4, end), end);
        var type = TYPE.matcher(head);
        var mediaType = type.find() ? Optional.of(MediaType.of(type.group(1).strip())) : Optional.<MediaType>empty();
        var filename = FILENAME.matcher(head);
        return filename.find()
            ? new FilePart(unescape(name.group(1)), unescape(filename.group(1)), mediaType, content)
            : new TextPart(unescape(name.group(1)), mediaType, content);
    }

    /** Browsers and httpx percent-encode quotes and line ends in names; others escape them by a backslash. */
    private static String unescape(String text) {
        return text.replaceAll("\\\\(.)", "$1").replace("%22", "\"").replace("%0D", "\r").replace("%0A", "\n");
    }

    private static boolean startsWith(byte[] body, int at, String text) {
        return at + text.length() <= body.length && new String(body, at, text.length(), StandardCharsets.ISO_8859_1).equals(text);
    }

    private static int indexOf(byte[] body, byte[] sought, int from) {
        for (var i = from; i <= body.length - sought.length; i++) {
            if (body[i] == sought[0] && Arrays.equals(body, i, i + sought.length, sought, 0, sought.length)) {
                return i;
            }
        }
        return -1;
    }

    private interface InMemory {
        byte[] content();

        default InputStream getInputStream() {
            return new ByteArrayInputStream(content());
        }

        default byte[] getBytes() {
            return content();
        }

        default ByteBuffer getByteBuffer() {
            return ByteBuffer.wrap(content());
        }
    }

    private record TextPart(String name, Optional<MediaType> type, byte[] content) implements CompletedPart, InMemory {
        @Override
        public String getName() {
            return name;
        }

        @Override
        public Optional<MediaType> getContentType() {
            return type;
        }

        @Override
        public InputStream getInputStream() {
            return InMemory.super.getInputStream();
        }

        @Override
        public byte[] getBytes() {
            return content;
        }

        @Override
        public ByteBuffer getByteBuffer() {
            return InMemory.super.getByteBuffer();
        }
    }

    private record FilePart(
        String name, String filename, Optional<MediaType> type, byte[] content
    ) implements CompletedFileUpload, InMemory {
        @Override
        public String getName() {
            return name;
        }

        @Override
        public String getFilename() {
            return filename;
        }

        @Override
        public Optional<MediaType> getContentType() {
            return type;
        }

        @Override
        public long getSize() {
            return content.length;
        }

        @Override
        public long getDefinedSize() {
            return content.length;
        }

        @Override
        public boolean isComplete() {
            return true;
        }

        @Override
        public InputStream getInputStream() {
            return InMemory.super.getInputStream();
        }

        @Override
        public byte[] getBytes() {
            return content;
        }

        @Override
        public ByteBuffer getByteBuffer() {
            return InMemory.super.getByteBuffer();
        }
    }
}
