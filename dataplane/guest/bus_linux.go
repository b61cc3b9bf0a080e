package guest

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// A bus is a connection to D-Bus, as far as telling a network manager something
// needs it (D-Bus specification 0.41). The managers' own tools speak it as well, but
// take a second and more to start in a slow guest, which is what a swap waits for.
type bus struct {
	conn   net.Conn
	in     *bufio.Reader
	serial uint32
}

const systemBus = "/run/dbus/system_bus_socket"

// An object is the path of one on the bus.
type object string

// busPatience is how long a manager may take to answer.
const busPatience = 10 * time.Second

// dialBus connects.
func dialBus(ctx context.Context, socket string) (*bus, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("reach D-Bus: %w", err)
	}
	conn.SetDeadline(time.Now().Add(busPatience))
	b := &bus{conn: conn, in: bufio.NewReader(conn)}
	if err := b.begin(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet D-Bus: %w", err)
	}
	return b, nil
}

func (b *bus) close() { b.conn.Close() }

// begin says who is there: the kernel vouches for the user's number.
func (b *bus) begin() error {
	uid := hex.EncodeToString([]byte(strconv.Itoa(os.Getuid())))
	if _, err := fmt.Fprintf(b.conn, "\x00AUTH EXTERNAL %s\r\n", uid); err != nil {
		return err
	}
	line, err := b.in.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "OK ") {
		return errors.Join(fmt.Errorf("it said %.40q", line), err)
	}
	if _, err := io.WriteString(b.conn, "BEGIN\r\n"); err != nil {
		return err
	}
	_, err = b.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
	return err
}

// Types of messages, and codes of their header's fields.
const (
	busCall, busReturn, busError                                            = 1, 2, 3
	fieldPath, fieldInterface, fieldMember, fieldReplyTo, fieldTo, fieldSig = 1, 2, 3, 5, 6, 8
)

// call calls a method and returns the first thing of its answer, if that is a string
// or an object. Arguments are strings, objects and int32s.
func (b *bus) call(to string, at object, iface, method string, args ...any) (string, error) {
	b.serial++
	if _, err := b.conn.Write(encodeCall(b.serial, to, at, iface, method, args)); err != nil {
		return "", err
	}
	for {
		m, err := b.read()
		switch {
		case err != nil:
			return "", err
		case m.replyTo != b.serial: // a signal
		case m.kind == busError:
			return "", fmt.Errorf("%s: %s", method, m.first)
		default:
			return m.first, nil
		}
	}
}

func encodeCall(serial uint32, to string, at object, iface, method string, args []any) []byte {
	var body marshal
	var sig string
	for _, a := range args {
		switch a := a.(type) {
		case string:
			sig += "s"
			body.text(a)
		case object:
			sig += "o"
			body.text(string(a))
		case int32:
			sig += "i"
			body.number(uint32(a))
		}
	}
	var fields marshal
	put := func(code byte, sig string, value func()) {
		fields.align(8)
		fields = append(fields, code)
		fields.signature(sig)
		value()
	}
	put(fieldPath, "o", func() { fields.text(string(at)) })
	put(fieldInterface, "s", func() { fields.text(iface) })
	put(fieldMember, "s", func() { fields.text(method) })
	put(fieldTo, "s", func() { fields.text(to) })
	if sig != "" {
		put(fieldSig, "g", func() { fields.signature(sig) })
	}
	m := marshal{'l', busCall, 0, 1}
	m.number(uint32(len(body)))
	m.number(serial)
	m.number(uint32(len(fields)))
	m = append(m, fields...)
	m.align(8)
	return append(m, body...)
}

// marshal is data as D-Bus has it, little-endian.
type marshal []byte

func (m *marshal) align(n int) {
	for len(*m)%n != 0 {
		*m = append(*m, 0)
	}
}

func (m *marshal) number(v uint32) {
	m.align(4)
	*m = binary.LittleEndian.AppendUint32(*m, v)
}

func (m *marshal) text(s string) {
	m.number(uint32(len(s)))
	*m = append(append(*m, s...), 0)
}

func (m *marshal) signature(s string) {
	*m = append(append(append(*m, byte(len(s))), s...), 0)
}

// A busMessage is what came.
type busMessage struct {
	kind    byte
	replyTo uint32
	first   string // of the body, if it is a string or an object
}

var errBus = errors.New("D-Bus speaks in riddles")

// read reads one message of at most 64 KiB.
func (b *bus) read() (m busMessage, err error) {
	var head [16]byte
	if _, err := io.ReadFull(b.in, head[:]); err != nil {
		return m, err
	}
	body, fields := binary.LittleEndian.Uint32(head[4:]), binary.LittleEndian.Uint32(head[12:])
	if head[0] != 'l' || body > 1<<16 || fields > 1<<16 {
		return m, errBus
	}
	rest := make([]byte, (fields+7)/8*8+body)
	if _, err := io.ReadFull(b.in, rest); err != nil {
		return m, err
	}
	m.kind = head[1]
	sig, ok := m.readFields(rest[:fields])
	if !ok {
		return m, errBus
	}
	if rest = rest[(fields+7)/8*8:]; strings.HasPrefix(sig, "s") || strings.HasPrefix(sig, "o") {
		if m.first, _, ok = takeText(rest, 0); !ok {
			return m, errBus
		}
	}
	return m, nil
}

// readFields takes what matters out of a message's header, and returns the body's
// signature.
func (m *busMessage) readFields(b []byte) (sig string, ok bool) {
	for at := 0; at < len(b); at = (at + 7) / 8 * 8 {
		if at+4 > len(b) || b[at+1] != 1 {
			return "", false
		}
		code, kind := b[at], b[at+2]
		at += 4
		switch kind {
		case 'u':
			if at+4 > len(b) {
				return "", false
			}
			if code == fieldReplyTo {
				m.replyTo = binary.LittleEndian.Uint32(b[at:])
			}
			at += 4
		case 's', 'o':
			if _, at, ok = takeText(b, at); !ok {
				return "", false
			}
		case 'g':
			if at >= len(b) || at+2+int(b[at]) > len(b) {
				return "", false
			}
			sig = string(b[at+1 : at+1+int(b[at])])
			at += 2 + int(b[at])
		default:
			return "", false
		}
	}
	return sig, true
}

// takeText takes a string at an offset that is a multiple of four.
func takeText(b []byte, at int) (s string, next int, ok bool) {
	if at+4 > len(b) {
		return "", 0, false
	}
	n := int(binary.LittleEndian.Uint32(b[at:]))
	if at += 4; n < 0 || n > len(b) || at+n+1 > len(b) {
		return "", 0, false
	}
	return string(b[at : at+n]), at + n + 1, true
}
