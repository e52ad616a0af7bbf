package upfleet;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.InputStream;
import java.lang.instrument.ClassFileTransformer;
import java.lang.instrument.Instrumentation;
import java.lang.reflect.InvocationTargetException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.nio.file.StandardCopyOption;
import java.security.MessageDigest;
import java.security.ProtectionDomain;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicReference;
import java.util.zip.ZipEntry;
import java.util.zip.ZipInputStream;

/**
 * What a JVM keeps of Upfleet for its whole life: the entry points, the one transformer, and the shared state.
 *
 * <p>A JVM never loads a class of the same name twice into its system loader, so this class stays as it was first
 * loaded and must never need a change. What it does lies in {@code upfleet.agent}, which every call takes from the jar
 * that its request names, through a class loader of its own. Shared state is made of JDK types only, for a later
 * version has to understand it.
 */
public final class Bootstrap implements ClassFileTransformer {
    private static final Map<String, Object> STATE = new ConcurrentHashMap<String, Object>();
    private static final AtomicReference<ClassFileTransformer> DELEGATE = new AtomicReference<ClassFileTransformer>();
    private static final int MOST_BYTES = 16 << 20;

    static {
        STATE.put("delegate", DELEGATE);
        STATE.put("transformer", new Bootstrap());
    }

    private Bootstrap() {}

    /** With {@code -javaagent:JAR=REQUEST}: never throws, for the application has to start. */
    public static void premain(String request, Instrumentation instrumentation) {
        run(request, instrumentation, true, new HashMap<String, String>());
    }

    /** By attaching: the work is done in a daemon thread, for the JVM answers nobody else meanwhile. */
    public static void agentmain(final String request, final Instrumentation instrumentation) {
        try {
            final Map<String, String> keys = new HashMap<String, String>();
            Thread thread = new Thread("upfleet") {
                @Override
                public void run() {
                    Bootstrap.run(request, instrumentation, false, keys);
                }
            };
            thread.setDaemon(true);
            thread.start();
            thread.join(8000);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    @Override
    public byte[] transform(ClassLoader loader, String name, Class<?> redefined, ProtectionDomain domain, byte[] bytes) {
        ClassFileTransformer delegate = DELEGATE.get();
        if (delegate == null || name == null) {
            return null;
        }
        try {
            return delegate.transform(loader, name, redefined, domain, bytes);
        } catch (Throwable e) {
            return null;
        }
    }

    private static void run(String request, Instrumentation instrumentation, boolean start, Map<String, String> keys) {
        try {
            for (String line : new String(read(Paths.get(request)), StandardCharsets.UTF_8).split("\n")) {
                int tab = line.indexOf('\t');
                if (tab > 0 && !keys.containsKey(line.substring(0, tab))) {
                    keys.put(line.substring(0, tab), line.substring(tab + 1));
                }
            }
            if (!keys.containsKey("agent")) {
                throw new IllegalArgumentException("the request names no agent");
            }
            loader(read(Paths.get(request).resolveSibling(keys.get("agent"))))
                    .loadClass("upfleet.agent.Agent")
                    .getMethod("run", String.class, Instrumentation.class, boolean.class, Map.class)
                    .invoke(null, request, instrumentation, start, STATE);
        } catch (Throwable e) {
            failed(request, keys.get("report"), e instanceof InvocationTargetException ? e.getCause() : e);
        }
    }

    /** The class loader of an implementation; the one that is there where the jar's bytes are the same. */
    private static synchronized ClassLoader loader(byte[] jar) throws Exception {
        byte[] digest = MessageDigest.getInstance("SHA-256").digest(jar);
        Object[] known = (Object[]) STATE.get("implementation");
        if (known != null && Arrays.equals((byte[]) known[0], digest)) {
            return (ClassLoader) known[1];
        }
        ClassLoader loader = new Implementation(jar);
        STATE.put("implementation", new Object[] {digest, loader});
        return loader;
    }

    private static void failed(String request, String report, Throwable problem) {
        String text = String.valueOf(problem).replaceAll("[\\p{Cntrl}]", " ");
        try {
            if (report == null) {
                throw new IllegalArgumentException("no report is asked for");
            }
            Path whole = Paths.get(request).resolveSibling(report);
            Path part = Paths.get(whole + ".part");
            String lines = "upfleet-report\t1\nerror\tAGENT\t" + text + "\nend\tfailed\n";
            Files.write(part, lines.getBytes(StandardCharsets.UTF_8));
            Files.move(part, whole, StandardCopyOption.ATOMIC_MOVE);
        } catch (Throwable e) {
            System.err.println("upfleet: no patch is in force: " + text);
        }
    }

    private static byte[] read(Path path) throws Exception {
        if (Files.size(path) > MOST_BYTES || !Files.isRegularFile(path)) {
            throw new IllegalArgumentException(path + " is no file of this agent");
        }
        return Files.readAllBytes(path);
    }

    /** The classes of one version; above it is the JDK only, so the application's are never met. */
    private static final class Implementation extends ClassLoader {
        private final Map<String, byte[]> classes = new HashMap<String, byte[]>();

        Implementation(byte[] jar) throws Exception {
            super(null);
            ZipInputStream zip = new ZipInputStream(new ByteArrayInputStream(jar));
            for (ZipEntry entry = zip.getNextEntry(); entry != null; entry = zip.getNextEntry()) {
                if (entry.getName().startsWith("upfleet/agent/") && entry.getName().endsWith(".class")) {
                    String name = entry.getName();
                    classes.put(name.substring(0, name.length() - 6).replace('/', '.'), all(zip));
                }
            }
        }

        @Override
        protected Class<?> findClass(String name) throws ClassNotFoundException {
            byte[] bytes = classes.get(name);
            if (bytes == null) {
                throw new ClassNotFoundException(name);
            }
            return defineClass(name, bytes, 0, bytes.length);
        }

        private static byte[] all(InputStream from) throws Exception {
            ByteArrayOutputStream to = new ByteArrayOutputStream();
            byte[] part = new byte[8192];
            for (int n = from.read(part); n > 0; n = from.read(part)) {
                to.write(part, 0, n);
            }
            return to.toByteArray();
        }
    }
}
