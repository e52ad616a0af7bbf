package upfleet.agent;

import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.nio.file.StandardCopyOption;
import java.util.ArrayList;
import java.util.List;

/** The answer to one request: lines of fields, put in place whole, with a last line that says so. */
final class Report {
    private final List<String> lines = new ArrayList<String>();
    private boolean failed;

    void add(String line) {
        lines.add(line);
    }

    List<String> lines() {
        return lines;
    }

    String firstError() {
        for (String line : lines) {
            if (line.startsWith("error\t")) {
                return line.substring(6).replace('\t', ' ');
            }
        }
        return "";
    }

    void note(String kind, String note) {
        add("note\t" + kind + "\t" + Bytes.plain(note));
    }

    void error(String code, Object... fields) {
        failed = true;
        StringBuilder line = new StringBuilder("error\t" + code);
        for (Object field : fields) {
            line.append('\t').append(Bytes.plain(field));
        }
        add(line.toString());
    }

    boolean failed() {
        return failed;
    }

    /** How a class stands that has this record. */
    static String standing(Plan.Target target, String[] record) {
        if (!record[Records.PROBLEM].isEmpty()) {
            return "old";
        }
        if (target.patched.isEmpty()) {
            String now = record[Records.IN_FORCE].isEmpty() ? record[Records.ORIGINAL] : record[Records.IN_FORCE];
            return target.accepts.contains(now) ? "proved" : "old";
        }
        return record[Records.IN_FORCE].equals(target.patched) ? "proved" : "old";
    }

    static String line(Plan.Target target, String standing, String loader, String[] record) {
        String expected = target.patched;
        if (expected.isEmpty()) {
            String now = record[Records.IN_FORCE].isEmpty() ? record[Records.ORIGINAL] : record[Records.IN_FORCE];
            expected = target.accepts.contains(now) || target.accepts.isEmpty() ? now : target.accepts.iterator().next();
        }
        return "class\t" + standing + "\t" + target.number + "\t" + Bytes.plain(target.name) + "\t" + Bytes.plain(loader)
                + "\t" + Bytes.plain(record[Records.SOURCE]) + "\t" + record[Records.ORIGINAL] + "\t" + expected + "\t"
                + record[Records.MECHANISM] + "\t" + Bytes.plain(record[Records.PROBLEM]);
    }

    void write(String path) throws Exception {
        add("end\t" + (failed ? "failed" : "ok"));
        StringBuilder text = new StringBuilder("upfleet-report\t1\n");
        for (String line : lines) {
            text.append(line).append('\n');
        }
        Path part = Paths.get(path + ".part");
        Files.write(part, text.toString().getBytes(StandardCharsets.UTF_8));
        Files.move(part, Paths.get(path), StandardCopyOption.ATOMIC_MOVE);
    }
}
