package guest

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The real bus understands what is said, and is understood.
func TestBus(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "bus")
	check(t, os.WriteFile(filepath.Join(dir, "conf"), []byte(`<busconfig><type>system</type><listen>unix:path=`+socket+`</listen>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>`), 0o600))
	daemon := exec.Command("dbus-daemon", "--nofork", "--config-file="+filepath.Join(dir, "conf"))
	daemon.Stderr = t.Output()
	if err := daemon.Start(); err != nil {
		t.Fatalf("%v (needs dbus-daemon)", err)
	}
	t.Cleanup(func() {
		daemon.Process.Kill()
		daemon.Wait()
	})
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	var b *bus
	for err := error(nil); b == nil; pause(ctx, 10*time.Millisecond) {
		if b, err = dialBus(ctx, socket); ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	defer b.close()
	ask := func(args ...any) (string, error) {
		return b.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetNameOwner", args...)
	}
	if got, err := ask("org.freedesktop.DBus"); got != "org.freedesktop.DBus" || err != nil {
		t.Errorf("owner %q, %v", got, err)
	}
	for want, args := range map[string][]any{
		"no such name":     {"org.example.nobody"},
		"wrong args (i,":   {int32(-7)},
		"wrong args (oos,": {object("/"), object("/a/b"), "c"},
	} {
		if _, err := ask(args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
	// The daemon closes the connection of whoever sends it a malformed message.
	if got, err := ask("org.freedesktop.DBus"); got == "" || err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// Whatever else sits at the socket, it is an error, and soon.
func TestNoBus(t *testing.T) {
	if _, err := dialBus(t.Context(), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no socket is no error")
	}
	for name, says := range map[string]string{
		"nothing":             "",
		"a refusal":           "REJECTED EXTERNAL\r\n",
		"another protocol":    "SSH-2.0-OpenSSH_9.2\r\n",
		"big-endian":          "OK 0\r\nB\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00",
		"a body of gigabytes": "OK 0\r\nl\x02\x01\x01\xff\xff\xff\x7f\x01\x00\x00\x00\x00\x00\x00\x00",
		"half a field":        "OK 0\r\nl\x02\x01\x01\x00\x00\x00\x00\x01\x00\x00\x00\x07\x00\x00\x00\x06\x01s\x00\xff\xff\xff\xff",
		"half a message":      "OK 0\r\nl\x02\x01\x01\x00\x00\x00\x00\x01\x00\x00\x00\x10\x00\x00\x00\x06\x01",
	} {
		socket := filepath.Join(t.TempDir(), "bus")
		l, err := net.Listen("unix", socket)
		check(t, err)
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte(says))
			c.(*net.UnixConn).CloseWrite()
			c.Read(make([]byte, 999))
		}()
		if b, err := dialBus(t.Context(), socket); err == nil {
			b.close()
			t.Errorf("%s is no error", name)
		}
		l.Close()
	}
}

// What a message of the bus says never brings the agent down.
func FuzzBusMessage(f *testing.F) {
	f.Add([]byte("\x06\x01s\x00\x04\x00\x00\x00:1.7\x00\x00\x00\x00\x05\x01u\x00\x01\x00\x00\x00\x08\x01g\x00\x01s\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m busMessage
		m.readFields(b)
		takeText(b, 0)
	})
}
