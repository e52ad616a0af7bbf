package upfleet.agent;

import java.io.File;
import java.io.FileOutputStream;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.Map;

/**
 * The file in which this JVM says, as it goes, what became of each patched class: {@code PID-START.journal}. So the
 * answer is there without attaching again. The open stream lives in the shared state.
 */
final class Journal {
    private static final int MOST_LINES = 20000;

    private final Map<String, Object> state;

    Journal(Map<String, Object> state) {
        this.state = state;
    }

    /** Opens it, unless it is open already. Without one, patches are as much in force, and the JVM can be asked. */
    void open(String directory, Report report) {
        synchronized (state) {
            if (directory == null || state.get("journal") != null) {
                return;
            }
            try {
                Path path = Paths.get(directory, process() + ".journal");
                Files.deleteIfExists(path);
                state.put("journal", new FileOutputStream(path.toFile(), true));
                state.put("journal-lines", Integer.valueOf(0));
                line("upfleet-journal\t1");
            } catch (Exception e) {
                report.note("journal", String.valueOf(e));
            }
        }
    }

    void event(Plan.Target target, ClassLoader loader, String[] record) {
        line(Report.line(target, Report.standing(target, record), Bytes.loader(loader), record));
    }

    /** A journal that can't be written is no reason to stop anything: who reads it misses its lines. */
    void line(String line) {
        synchronized (state) {
            OutputStream out = (OutputStream) state.get("journal");
            Integer lines = (Integer) state.get("journal-lines");
            if (out == null || lines == null || lines > MOST_LINES) {
                return;
            }
            state.put("journal-lines", lines + 1);
            try {
                String text = lines == MOST_LINES ? "overflow\n" : line + "\n";
                out.write(text.getBytes(StandardCharsets.UTF_8));
            } catch (Exception e) {
                state.put("journal-problem", Bytes.plain(e));
            }
        }
    }

    /** The process id and the start time in ticks, as in {@code /proc}. */
    static String process() throws Exception {
        String pid = new File("/proc/self").getCanonicalFile().getName();
        String stat = new String(Files.readAllBytes(Paths.get("/proc/self/stat")), StandardCharsets.ISO_8859_1);
        String[] fields = stat.substring(stat.lastIndexOf(')') + 2).split(" ");
        return pid + "-" + fields[19];
    }
}
