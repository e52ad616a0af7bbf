package upfleet.agent;

import java.io.File;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.zip.ZipEntry;
import java.util.zip.ZipFile;

/** A request as read: what to do, and what each class should be. */
final class Plan {
    /** One class. */
    static final class Target {
        String name;
        int number;
        /** SHA-256 of the bytes that should be in force; empty where the application's own should. */
        String patched;
        /** SHA-256 of the application's own bytes that may be replaced. */
        Set<String> accepts;
        /** SHA-256 of what patches have for it: not the application's own, but known. */
        Set<String> others;
        /** The bytes for {@code patched}. */
        byte[] bytes;

        boolean isNew() {
            return accepts.isEmpty() && !patched.isEmpty();
        }
    }

    private String file = "";
    String operation = "";
    String set = "";
    String mechanism = "";
    String report;
    String journal;
    String additions;
    /** By number: path and digest. */
    final Map<Integer, String[]> jars = new HashMap<Integer, String[]>();
    /** By binary name with dots. */
    final Map<String, Target> targets = new HashMap<String, Target>();
    /** The same by the name with slashes, as a transformer gets it. */
    final Map<String, Target> slashed = new HashMap<String, Target>();

    /** Reads the lines; a request that is torn, or of another version, is refused whole. */
    static Plan read(String path) throws Exception {
        Plan plan = new Plan();
        plan.file = path;
        String text = new String(Files.readAllBytes(Paths.get(path)), StandardCharsets.UTF_8);
        String[] lines = text.split("\n");
        if (!lines[0].equals("upfleet-request\t1")) {
            throw new IllegalArgumentException("not a request of version 1: " + path);
        }
        if (!lines[lines.length - 1].equals("end") || !text.endsWith("\n")) {
            throw new IllegalArgumentException("the request does not end: " + path);
        }
        for (int i = 1; i < lines.length - 1; i++) {
            plan.line(lines[i].split("\t", -1));
        }
        if (!plan.operation.equals("start") && !plan.operation.equals("set") && !plan.operation.equals("prove")) {
            throw new IllegalArgumentException("unknown operation " + plan.operation);
        }
        return plan;
    }

    private void line(String[] f) {
        if (f[0].equals("operation")) {
            operation = f[1];
        } else if (f[0].equals("set")) {
            set = f[1];
        } else if (f[0].equals("mechanism")) {
            mechanism = f[1];
        } else if (f[0].equals("report")) {
            report = path(f[1]);
        } else if (f[0].equals("journal")) {
            journal = path(f[1]);
        } else if (f[0].equals("additions")) {
            additions = path(f[1]);
        } else if (f[0].equals("jar")) {
            jars.put(Integer.valueOf(f[1]), new String[] {path(f[2]), f[3]});
        } else if (f[0].equals("class")) {
            Target target = new Target();
            target.name = f[1];
            target.number = Integer.parseInt(f[2]);
            target.patched = f[3].equals("-") ? "" : f[3];
            target.accepts = digests(f[4]);
            target.others = digests(f[5]);
            put(target);
        } else if (!f[0].equals("agent")) {
            throw new IllegalArgumentException("unknown line " + f[0]);
        }
    }

    /** Paths may be beside the request. */
    private String path(String text) {
        return Paths.get(file).resolveSibling(text).toString();
    }

    void put(Target target) {
        targets.put(target.name, target);
        slashed.put(target.name.replace('.', '/'), target);
    }

    static Set<String> digests(String list) {
        Set<String> digests = new HashSet<String>();
        for (String digest : list.split(",")) {
            if (!digest.equals("-") && !digest.isEmpty()) {
                digests.add(digest);
            }
        }
        return digests;
    }

    /** Reads the bytes of every patched class, and refuses a jar that has others. The jars are closed again. */
    void load() throws Exception {
        Map<Integer, ZipFile> open = new HashMap<Integer, ZipFile>();
        try {
            for (Target target : targets.values()) {
                if (target.patched.isEmpty()) {
                    continue;
                }
                ZipFile jar = open.get(target.number);
                if (jar == null) {
                    String[] named = jars.get(target.number);
                    if (named == null) {
                        throw new IllegalArgumentException("no jar for patch " + target.number);
                    }
                    jar = new ZipFile(new File(named[0]));
                    open.put(target.number, jar);
                }
                ZipEntry entry = jar.getEntry(target.name.replace('.', '/') + ".class");
                if (entry == null) {
                    throw new IllegalArgumentException(jar.getName() + " has no " + target.name);
                }
                InputStream in = jar.getInputStream(entry);
                target.bytes = Bytes.all(in);
                in.close();
                if (!Bytes.sha256(target.bytes).equals(target.patched)) {
                    throw new IllegalArgumentException(jar.getName() + " has other bytes of " + target.name);
                }
            }
        } finally {
            for (ZipFile jar : open.values()) {
                jar.close();
            }
        }
    }

    /** The classes that no base has. */
    List<Target> additions() {
        List<Target> list = new ArrayList<Target>();
        for (Target target : targets.values()) {
            if (target.isNew()) {
                list.add(target);
            }
        }
        return list;
    }

    /** In JDK types, for whichever version of this code reads it later. */
    Object[] freeze() {
        Map<String, Object[]> classes = new HashMap<String, Object[]>();
        for (Target t : targets.values()) {
            classes.put(t.name, new Object[] {t.number, t.patched, t.accepts, t.others, t.bytes});
        }
        return new Object[] {set, mechanism, classes, additions};
    }

    @SuppressWarnings("unchecked")
    static Plan thaw(Object[] frozen) {
        Plan plan = new Plan();
        if (frozen != null) {
            plan.set = (String) frozen[0];
            plan.mechanism = (String) frozen[1];
            plan.additions = (String) frozen[3];
            for (Map.Entry<String, Object[]> entry : ((Map<String, Object[]>) frozen[2]).entrySet()) {
                Object[] values = entry.getValue();
                Target target = new Target();
                target.name = entry.getKey();
                target.number = (Integer) values[0];
                target.patched = (String) values[1];
                target.accepts = (Set<String>) values[2];
                target.others = (Set<String>) values[3];
                target.bytes = (byte[]) values[4];
                plan.put(target);
            }
        }
        return plan;
    }
}
