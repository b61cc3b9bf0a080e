package qmp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"replug/dataplane/qmp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	deadline = 10 * time.Second
	hangUp   = "\x04"
	greeting = `{"QMP": {"version": {"qemu": {"micro": 7, "minor": 2, "major": 9}}, "capabilities": ["oob"]}}`
)

// A command as the monitor reads it.
type command struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        string          `json:"id"`
}

// monitor serves one client: it greets, takes capabilities, then lets answer
// say what to send for each command, line ends included. An answer that ends in
// hangUp closes the connection.
func monitor(t *testing.T, hello string, answer func(command) string) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "qmp.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, hello, "\r\n")
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			var c command
			if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
				t.Errorf("the client sent %q", lines.Text())
				return
			}
			say := returns(c, "{}")
			if c.Execute != "qmp_capabilities" {
				say = answer(c)
			}
			if last, ok := strings.CutSuffix(say, hangUp); ok {
				fmt.Fprint(conn, last)
				return
			}
			fmt.Fprint(conn, say)
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return socket
}

func returns(c command, value string) string {
	return fmt.Sprintf(`{"return": %s, "id": %q}`+"\r\n", value, c.ID)
}

func dial(t *testing.T, socket string) *qmp.Client {
	t.Helper()
	c, err := qmp.Dial(within(t, deadline), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestExecute(t *testing.T) {
	c := dial(t, monitor(t, greeting, func(c command) string {
		switch c.Execute {
		case "set_link":
			if got := string(c.Arguments); got != `{"name":"nic7","up":false}` {
				t.Errorf("arguments %s", got)
			}
			return returns(c, "{}")
		case "query-status":
			return `{"event": "NIC_RX_FILTER_CHANGED", "data": {"name": "nic7"}, "timestamp": {"seconds": 1777, "microseconds": 250000}}` +
				"\r\n" + `{"return": {}, "id": "stranger"}` + "\r\n" +
				returns(c, `{"status": "prelaunch", "running": false}`)
		}
		return fmt.Sprintf(`{"error": {"class": "CommandNotFound", "desc": "what?"}, "id": %q}`+"\r\n", c.ID)
	}))
	ctx := within(t, deadline)
	if err := c.SetLink(ctx, "nic7", false); err != nil {
		t.Error(err)
	}
	if s, err := c.Status(ctx); err != nil || s != "prelaunch" {
		t.Errorf("status %q, %v", s, err)
	}
	var refused *qmp.Error
	if err := c.Execute(ctx, "make-coffee", nil, nil); !errors.As(err, &refused) || refused.Class != "CommandNotFound" || refused.Command != "make-coffee" {
		t.Errorf("got %v", err)
	}
	if err := c.Execute(ctx, "query-status", nil, new(int)); err == nil || c.Err() != nil {
		t.Errorf("another shape than expected: %v, client %v", err, c.Err())
	}
	e := <-c.Events()
	if e.Name != "NIC_RX_FILTER_CHANGED" || string(e.Data) != `{"name": "nic7"}` || !e.At.Equal(time.Unix(1777, 250e6)) {
		t.Errorf("event %+v", e)
	}
}

// TestAtOnce has many callers whose answers come in another order.
func TestAtOnce(t *testing.T) {
	var held []string
	c := dial(t, monitor(t, greeting, func(c command) string {
		held = append(held, returns(c, fmt.Sprintf(`{"said": %s}`, c.Arguments)))
		if len(held) < 9 {
			return ""
		}
		slices.Reverse(held)
		return strings.Join(held, "")
	}))
	var wg sync.WaitGroup
	for i := range 9 {
		wg.Go(func() {
			var out struct{ Said int }
			if err := c.Execute(within(t, deadline), "echo", 1000+i, &out); err != nil || out.Said != 1000+i {
				t.Errorf("call %d got %d, %v", i, out.Said, err)
			}
		})
	}
	wg.Wait()
}

func TestDialRefuses(t *testing.T) {
	for _, c := range []struct{ name, hello, want string }{
		{"another protocol", "SSH-2.0-OpenSSH_9.2", "greeted with"},
		{"JSON, but no greeting", `{"return": {}}`, "greeted with"},
		{"endless greeting", strings.Repeat("x", 2<<20), "no greeting"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := qmp.Dial(within(t, deadline), monitor(t, c.hello, nil))
			if !errors.Is(err, qmp.ErrProtocol) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := qmp.Dial(within(t, deadline), filepath.Join(t.TempDir(), "absent")); err == nil {
		t.Error("no socket, no error")
	}
}

// TestBusy dials a monitor that never greets, as QEMU's does to a second client.
func TestBusy(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "qmp.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, err = qmp.Dial(within(t, 50*time.Millisecond), socket)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another client") {
		t.Errorf("got %v", err)
	}
}

// TestMonitorDies loses the monitor in mid-call, in each of the ways it can go.
func TestMonitorDies(t *testing.T) {
	for _, c := range []struct {
		name, say string
		want      error
	}{
		{"closed", hangUp, qmp.ErrClosed},
		{"half a message, then closed", `{"return": {}, "id` + hangUp, qmp.ErrProtocol},
		{"not JSON", "Segmentation fault\r\n", qmp.ErrProtocol},
		{"endless message", `{"event": "` + strings.Repeat("A", 2<<20), bufio.ErrTooLong},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := dial(t, monitor(t, greeting, func(command) string { return c.say }))
			err := client.SetLink(within(t, deadline), "nic7", true)
			if !errors.Is(err, qmp.ErrClosed) || !errors.Is(err, c.want) || !strings.HasPrefix(err.Error(), "set_link: ") {
				t.Errorf("got %v, want %v", err, c.want)
			}
			<-client.Done()
			if _, open := <-client.Events(); open {
				t.Error("events go on")
			}
			if _, open := <-client.Resets(); open {
				t.Error("resets go on")
			}
			if err := client.SetLink(within(t, deadline), "nic7", true); !errors.Is(err, qmp.ErrClosed) {
				t.Errorf("a call after death: %v", err)
			}
		})
	}
}

// TestSilence gives up a call without losing the client; the late answer is nobody's.
func TestSilence(t *testing.T) {
	release := make(chan struct{})
	c := dial(t, monitor(t, greeting, func(c command) string {
		if c.Execute == "stop" {
			<-release
		}
		return returns(c, `{"status": "paused"}`)
	}))
	if err := c.Stop(within(t, 50*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	close(release)
	if s, err := c.Status(within(t, deadline)); err != nil || s != "paused" {
		t.Errorf("after it: %q, %v", s, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Cont(ctx); !errors.Is(err, context.Canceled) || c.Err() != nil {
		t.Errorf("a context that is done: %v, client %v", err, c.Err())
	}
}

// TestEventFlood sends more events than anybody takes: calls go on.
func TestEventFlood(t *testing.T) {
	c := dial(t, monitor(t, greeting, func(c command) string {
		return strings.Repeat(`{"event": "RTC_CHANGE"}`+"\r\n", 500) + returns(c, "{}")
	}))
	if err := c.Powerdown(within(t, deadline)); err != nil {
		t.Error(err)
	}
	if n := len(c.Events()); n != 64 {
		t.Errorf("%d events wait, want 64", n)
	}
}

// TestResets tells resets apart from other events, and that there was one is not
// lost in a flood.
func TestResets(t *testing.T) {
	c := dial(t, monitor(t, greeting, func(c command) string {
		reset := `{"event": "RESET", "data": {"guest": true, "reason": "guest-reset"}, "timestamp": {"seconds": 1777, "microseconds": 1}}` + "\r\n"
		return strings.Repeat(`{"event": "RTC_CHANGE"}`+"\r\n", 65) + reset + reset + returns(c, "{}")
	}))
	if err := c.Powerdown(within(t, deadline)); err != nil {
		t.Error(err)
	}
	if n := len(c.Resets()); n != 1 {
		t.Errorf("%d resets wait, want 1", n)
	}
	for range 64 {
		if e := <-c.Events(); e.Name != "RTC_CHANGE" {
			t.Errorf("event %+v", e)
		}
	}
}

// TestUnplug waits for the guest to let go, and takes what is so already for done.
func TestUnplug(t *testing.T) {
	c := dial(t, monitor(t, greeting, func(c command) string {
		refuse := func(class, desc string) string {
			return fmt.Sprintf(`{"error": {"class": %q, "desc": %q}, "id": %q}`+"\r\n", class, desc, c.ID)
		}
		deleted := func(device string) string {
			return fmt.Sprintf(`{"event": "DEVICE_DELETED", "data": {"device": %q}, "timestamp": {"seconds": 1777, "microseconds": 1}}`+"\r\n", device)
		}
		switch string(c.Arguments) {
		case `{"id":"nic7"}`:
			return returns(c, "{}") + deleted("disk3") + deleted("nic7")
		case `{"id":"nic8"}`:
			return refuse("DeviceNotFound", "Device 'nic8' not found")
		case `{"id":"nic9"}`:
			return refuse("GenericError", "Device nic9 is already in the process of unplug") + deleted("nic9")
		case `{"driver":"virtio-net-pci","id":"nic7"}`:
			return refuse("GenericError", "Duplicate device ID 'nic7'")
		}
		return refuse("GenericError", "Bus 'slot0' does not support hotplugging")
	}))
	ctx := within(t, deadline)
	for _, id := range []string{"nic7", "nic8", "nic9"} {
		if err := c.Unplug(ctx, id); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	if err := c.Unplug(ctx, "nic6"); err == nil {
		t.Error("a bus without hotplug let go")
	}
	if err := c.Plug(ctx, map[string]any{"driver": "virtio-net-pci", "id": "nic7"}); err != nil {
		t.Errorf("one that is there already: %v", err)
	}
	if err := c.Plug(ctx, map[string]any{"driver": "virtio-net-pci", "id": "nic6"}); err == nil {
		t.Error("a bus without hotplug took one")
	}
}
