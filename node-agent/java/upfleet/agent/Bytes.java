package upfleet.agent;

import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.InputStream;
import java.net.URL;
import java.net.URLConnection;
import java.security.CodeSource;
import java.security.MessageDigest;
import java.security.ProtectionDomain;

/** Digests, streams, and names of loaders and places. */
final class Bytes {
    private static final char[] HEX = "0123456789abcdef".toCharArray();

    private Bytes() {}

    static String sha256(byte[] bytes) throws Exception {
        byte[] digest = MessageDigest.getInstance("SHA-256").digest(bytes);
        StringBuilder text = new StringBuilder(64);
        for (byte b : digest) {
            text.append(HEX[(b >> 4) & 15]).append(HEX[b & 15]);
        }
        return text.toString();
    }

    static byte[] all(InputStream from) throws Exception {
        ByteArrayOutputStream to = new ByteArrayOutputStream();
        byte[] part = new byte[8192];
        for (int n = from.read(part); n > 0; n = from.read(part)) {
            to.write(part, 0, n);
        }
        return to.toByteArray();
    }

    /** What a loader finds for a class, past the JVM's caches of jars; {@code null} where it finds nothing. */
    static byte[] find(URL url) throws Exception {
        if (url == null) {
            return null;
        }
        URLConnection connection = url.openConnection();
        connection.setUseCaches(false);
        InputStream in = connection.getInputStream();
        try {
            return all(in);
        } finally {
            in.close();
        }
    }

    static URL url(ClassLoader loader, String name) {
        String path = name.replace('.', '/') + ".class";
        return loader == null ? ClassLoader.getSystemResource(path) : loader.getResource(path);
    }

    static String loader(ClassLoader loader) {
        if (loader == null) {
            return "boot";
        }
        ClassLoader system = ClassLoader.getSystemClassLoader();
        if (loader == system) {
            return "app";
        }
        if (loader == system.getParent()) {
            return "platform";
        }
        return loader.getClass().getName() + "@" + Integer.toHexString(System.identityHashCode(loader));
    }

    static String source(ProtectionDomain domain) {
        CodeSource source = domain == null ? null : domain.getCodeSource();
        URL location = source == null ? null : source.getLocation();
        return location == null ? "" : place(location);
    }

    /** The path where a URL says a file or a jar, otherwise the URL. */
    static String place(URL url) {
        String text = url.toString();
        String plain = text;
        if (plain.startsWith("jar:file:") && plain.contains("!/") && plain.indexOf("!/") == plain.lastIndexOf("!/")) {
            plain = plain.substring(4, plain.indexOf("!/"));
        }
        if (plain.startsWith("file:") && !plain.contains("!/")) {
            try {
                return new File(new java.net.URI(plain)).getPath();
            } catch (Exception e) {
                return text;
            }
        }
        return text;
    }

    /** Without what would end a field or a line. */
    static String plain(Object value) {
        String text = String.valueOf(value);
        StringBuilder plain = new StringBuilder(text.length());
        for (int i = 0; i < text.length() && i < 2000; i++) {
            char c = text.charAt(i);
            plain.append(Character.isISOControl(c) ? ' ' : c);
        }
        return plain.toString();
    }
}
