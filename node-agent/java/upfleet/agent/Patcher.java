package upfleet.agent;

import java.lang.instrument.ClassFileTransformer;
import java.net.URL;
import java.security.ProtectionDomain;
import java.util.Collections;
import java.util.Map;
import java.util.TreeMap;

/**
 * Replaces classes as they load, and again when they are retransformed: by name and by what their original is.
 *
 * <p>One object per version of this code and JVM; which stack it obeys is a field. A batch that is being tried is
 * seen by the thread that tries it only, so that what loads meanwhile follows the stack that holds.
 */
final class Patcher implements ClassFileTransformer {
    private final Records records;
    private final Journal journal;
    private final Additions additions;
    /** {@code java-agent} where the transformer stood before the application, otherwise {@code live}. */
    private final String mechanism;
    private volatile Plan active;
    private volatile Batch batch;

    /** One attempt: what it wants, and what stands in its way. */
    static final class Batch {
        final Plan plan;
        final Thread thread = Thread.currentThread();
        /** By loader and class: what would be recorded. */
        final Map<Class<?>, String[]> records =
                Collections.synchronizedMap(new java.util.IdentityHashMap<Class<?>, String[]>());
        /** By class and loader: class, loader, number, original, and why it can't be. */
        final Map<String, String[]> refusals = new TreeMap<String, String[]>();
        /** Refuse all of it in the end: to learn what the JVM says of the classes before. */
        Class<?> veto;
        /** The JVM came as far as the veto. */
        volatile boolean vetoed;

        Batch(Plan plan) {
            this.plan = plan;
        }
    }

    Patcher(Records records, Journal journal, Additions additions, Plan active, String mechanism) {
        this.records = records;
        this.journal = journal;
        this.additions = additions;
        this.active = active;
        this.mechanism = mechanism;
    }

    Plan active() {
        return active;
    }

    Additions additions() {
        return additions;
    }

    /** Keeps what is now true of a class, and tells the journal. */
    void record(Plan.Target target, ClassLoader loader, String[] record) {
        records.put(loader, target.name, record);
        journal.event(target, loader, record);
    }

    void activate(Plan plan) {
        active = plan;
    }

    void begin(Batch next) {
        batch = next;
    }

    void end() {
        batch = null;
    }

    @Override
    public byte[] transform(ClassLoader loader, String name, Class<?> redefined, ProtectionDomain domain, byte[] bytes) {
        Batch trying = batch;
        if (redefined != null && trying != null && trying.thread == Thread.currentThread()) {
            return attempt(trying, loader, redefined, domain, bytes);
        }
        Plan plan = active;
        Plan.Target target = plan.slashed.get(name);
        if (target == null) {
            return null;
        }
        try {
            String[] record = judge(target, loader, redefined != null, domain, bytes);
            record(target, loader, record);
            if (redefined == null) {
                additions.define(plan, target, loader, domain);
            }
            return replacement(target, record, loader);
        } catch (Throwable e) {
            String[] record = {"", "", "", "the agent failed: " + Bytes.plain(e), mechanism};
            record(target, loader, record);
            return null;
        }
    }

    private byte[] attempt(Batch trying, ClassLoader loader, Class<?> c, ProtectionDomain domain, byte[] bytes) {
        if (c == trying.veto) {
            trying.vetoed = true;
            return newer(bytes);
        }
        Plan.Target target = trying.plan.targets.get(c.getName());
        if (target == null) {
            return null;
        }
        try {
            String[] record = judge(target, loader, true, domain, bytes);
            record[Records.MECHANISM] = "live";
            if (!record[Records.PROBLEM].isEmpty()) {
                refuse(trying, target, loader, record);
                return newer(bytes);
            }
            trying.records.put(c, record);
            return replacement(target, record, loader);
        } catch (Throwable e) {
            String[] record = {"", "", "", "the agent failed: " + Bytes.plain(e), "live"};
            refuse(trying, target, loader, record);
            return newer(bytes);
        }
    }

    private static void refuse(Batch trying, Plan.Target target, ClassLoader loader, String[] record) {
        trying.refusals.put(target.name + " " + Bytes.loader(loader),
                new String[] {target.name, Bytes.loader(loader), String.valueOf(target.number),
                    record[Records.ORIGINAL], record[Records.PROBLEM]});
    }

    /** The record of a class whose bytes, before us, are {@code bytes}. A problem means: left alone. */
    private String[] judge(Plan.Target target, ClassLoader loader, boolean again, ProtectionDomain domain, byte[] bytes)
            throws Exception {
        String seen = Bytes.sha256(bytes);
        String source = Bytes.source(domain);
        String original = seen;
        if (again && !known(target, seen)) {
            // HotSpot writes the class file anew: the loader's own file says whether it is the same class.
            byte[] file = Bytes.find(Bytes.url(loader, target.name));
            if (file != null && ClassFile.same(file, bytes)) {
                original = Bytes.sha256(file);
            } else if (file != null && known(target, Bytes.sha256(file))) {
                return new String[] {seen, "", source,
                        "the class file is " + Bytes.sha256(file) + ", but another Java agent or redefinition changed it",
                        mechanism};
            }
        }
        if (target.patched.isEmpty()) {
            if (target.accepts.contains(original)) {
                return new String[] {original, "", source, "", mechanism};
            }
            byte[] own = own(target, loader);
            if (own == null) {
                return new String[] {original, "", source, "the application's own class file was not found", mechanism};
            }
            return new String[] {original, Bytes.sha256(own), source, "", mechanism};
        }
        if (original.equals(target.patched)) {
            return new String[] {original, target.patched, source, "", mechanism};
        }
        if (target.accepts.contains(original) || (again && target.others.contains(original))) {
            return new String[] {original, target.patched, source, "", mechanism};
        }
        String problem = target.accepts.isEmpty()
                ? "the application has a class of this name"
                : "the patch is for " + list(target.accepts);
        return new String[] {original, "", source, problem, mechanism};
    }

    private static String list(java.util.Set<String> digests) {
        StringBuilder list = new StringBuilder();
        for (String digest : digests) {
            list.append(list.length() == 0 ? "" : ", ").append(digest);
        }
        return list.toString();
    }

    private static boolean known(Plan.Target target, String digest) {
        return digest.equals(target.patched) || target.accepts.contains(digest) || target.others.contains(digest);
    }

    /** The bytes to give to the JVM; {@code null} leaves what it has. */
    private byte[] replacement(Plan.Target target, String[] record, ClassLoader loader) throws Exception {
        if (!record[Records.PROBLEM].isEmpty() || record[Records.IN_FORCE].isEmpty()) {
            return null;
        }
        if (!target.patched.isEmpty()) {
            return record[Records.ORIGINAL].equals(target.patched) ? null : target.bytes;
        }
        return own(target, loader);
    }

    /** The application's own class file, where a patch's jar is before it on the class path. */
    private static byte[] own(Plan.Target target, ClassLoader loader) throws Exception {
        ClassLoader from = loader == null ? ClassLoader.getSystemClassLoader() : loader;
        for (URL url : Collections.list(from.getResources(target.name.replace('.', '/') + ".class"))) {
            byte[] bytes = Bytes.find(url);
            if (target.accepts.contains(Bytes.sha256(bytes))) {
                return bytes;
            }
        }
        return null;
    }

    /** A class file of a version that no JVM takes: makes the JVM refuse the batch whole. */
    private static byte[] newer(byte[] bytes) {
        byte[] refused = bytes.clone();
        refused[6] = (byte) 0x7f;
        refused[7] = (byte) 0xff;
        return refused;
    }
}
