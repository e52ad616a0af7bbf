package upfleet.agent;

import java.io.ByteArrayInputStream;
import java.io.DataInputStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * A class file, taken apart as far as it takes to say whether a JVM shows the one that it had read.
 *
 * <p>For a retransformation HotSpot writes the class file anew from what it keeps: constants stay in their places, but
 * methods and attributes change their order and attributes it has no use for are gone. So digests differ for most
 * classes that were loaded before the agent came, although nobody changed them.
 */
final class ClassFile {
    /** What the JVM may write in another form, and what no code depends on. */
    private static final Set<String> FREE = new HashSet<String>(Arrays.asList(
            "LineNumberTable", "LocalVariableTable", "LocalVariableTypeTable", "SourceDebugExtension", "InnerClasses"));

    private final List<byte[]> constants = new ArrayList<byte[]>();
    private final List<String> names = new ArrayList<String>();
    private final List<String> parents = new ArrayList<String>();
    private String head;
    private final Map<String, Map<String, byte[]>> members = new HashMap<String, Map<String, byte[]>>();

    private ClassFile(byte[] bytes) throws Exception {
        DataInputStream in = new DataInputStream(new ByteArrayInputStream(bytes));
        StringBuilder top = new StringBuilder();
        top.append(in.readInt()).append(' ').append(in.readInt());
        constants(in);
        top.append(' ').append(in.readUnsignedShort()).append(' ').append(in.readUnsignedShort());
        parents.add(className(in.readUnsignedShort()));
        for (int left = in.readUnsignedShort(); left > 0; left--) {
            parents.add(className(in.readUnsignedShort()));
        }
        top.append(' ').append(parents);
        head = top.toString();
        for (int kind = 0; kind < 2; kind++) {
            for (int left = in.readUnsignedShort(); left > 0; left--) {
                int access = in.readUnsignedShort();
                String key = kind + " " + name(in.readUnsignedShort()) + " " + name(in.readUnsignedShort()) + " " + access;
                members.put(key, attributes(in, true));
            }
        }
        members.put("", attributes(in, true));
        if (in.read() != -1) {
            throw new IllegalArgumentException("bytes after the class");
        }
    }

    private void constants(DataInputStream in) throws Exception {
        int count = in.readUnsignedShort();
        constants.add(new byte[0]);
        names.add(null);
        for (int i = 1; i < count; i++) {
            int tag = in.readUnsignedByte();
            byte[] value;
            String name = null;
            if (tag == 1) {
                value = new byte[in.readUnsignedShort()];
            } else if (tag == 5 || tag == 6) {
                value = new byte[8];
            } else if (tag == 7 || tag == 8 || tag == 16 || tag == 19 || tag == 20) {
                value = new byte[2];
            } else if (tag == 15) {
                value = new byte[3];
            } else {
                value = new byte[4];
            }
            in.readFully(value);
            if (tag == 1) {
                name = new String(value, "ISO-8859-1");
            }
            byte[] tagged = Arrays.copyOf(value, value.length + 1);
            tagged[value.length] = (byte) tag;
            constants.add(tagged);
            names.add(name);
            if (tag == 5 || tag == 6) {
                constants.add(new byte[0]);
                names.add(null);
                i++;
            }
        }
    }

    private String name(int index) {
        return String.valueOf(names.get(index));
    }

    private String className(int index) {
        byte[] pointer = constants.get(index);
        return name((pointer[0] & 255) << 8 | (pointer[1] & 255)).replace('/', '.');
    }

    /** The binary names of what the class of these bytes extends and implements. */
    static List<String> parents(byte[] bytes) throws Exception {
        return new ClassFile(bytes).parents;
    }

    /** By name. Those of code are taken out of it, for the JVM changes their order as well. */
    private Map<String, byte[]> attributes(DataInputStream in, boolean outer) throws Exception {
        Map<String, byte[]> attributes = new HashMap<String, byte[]>();
        for (int left = in.readUnsignedShort(); left > 0; left--) {
            String name = name(in.readUnsignedShort());
            byte[] value = new byte[in.readInt()];
            in.readFully(value);
            if (outer && name.equals("Code")) {
                DataInputStream code = new DataInputStream(new ByteArrayInputStream(value));
                code.skipBytes(4);
                code.skipBytes(code.readInt());
                code.skipBytes(8 * code.readUnsignedShort());
                int length = value.length - code.available();
                for (Map.Entry<String, byte[]> entry : attributes(code, false).entrySet()) {
                    attributes.put("Code." + entry.getKey(), entry.getValue());
                }
                value = Arrays.copyOf(value, length);
            }
            attributes.put(name, value);
        }
        return attributes;
    }

    /** Whether {@code shown}, as the JVM writes it, is the class of the file {@code original}. */
    static boolean same(byte[] original, byte[] shown) {
        try {
            return Arrays.equals(original, shown) || new ClassFile(original).shownAs(new ClassFile(shown));
        } catch (Exception e) {
            return false;
        }
    }

    private boolean shownAs(ClassFile shown) {
        if (!head.equals(shown.head) || !members.keySet().equals(shown.members.keySet())) {
            return false;
        }
        for (int i = 1; i < Math.min(constants.size(), shown.constants.size()); i++) {
            if (!Arrays.equals(constants.get(i), shown.constants.get(i))) {
                return false;
            }
        }
        for (Map.Entry<String, Map<String, byte[]>> member : shown.members.entrySet()) {
            Map<String, byte[]> mine = members.get(member.getKey());
            if (mine.containsKey("Code") != member.getValue().containsKey("Code")) {
                return false;
            }
            for (Map.Entry<String, byte[]> attribute : member.getValue().entrySet()) {
                String name = attribute.getKey();
                String plain = name.startsWith("Code.") ? name.substring(5) : name;
                if (!FREE.contains(plain) && !Arrays.equals(attribute.getValue(), mine.get(name))) {
                    return false;
                }
            }
        }
        return true;
    }
}
