package guest

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// askAtOnce is dhcpcd's -n, with options that it takes over for this NIC until its link
// changes again or it is told anew: its own file counts for everything else. It would
// wait up to 2 s before it asks (RFC 2131, section 4.4.1), up to 1 s before it asks
// routers, and look 5 to 7 s for others that have its IPv4 address (RFC 5227). Here that
// buys nothing: nobody else can have the address, the datapath refuses it to them.
//
// It has to hear of a flap first: after this it would drop what it has got and begin as
// it does alone. It is late by what the kernel holds back and by its own scripts: the
// host is given a sign meanwhile that the guest is on its way.
var askAtOnce = way{"dhcpcd " + strings.Join(atOnce, " "), func(ctx context.Context, l *linux, st linkState, c otherClient) error {
	_ = giveSign(st) // without it there may be another cut
	lossy := losesCommands(dhcpcdVersion(ctx))
	l.link.told(ctx)
	c.hears(ctx)
	if lossy {
		return l.writeCommands(ctx, st.name, append([]string{"dhcpcd"}, atOnce...), []string{"--version"})
	}
	return run(ctx, append(append([]string{"dhcpcd"}, atOnce...), st.name)...)
}}

var atOnce = []string{"-n", "--noarp", "--nodelay"}

// hearsBound is what a client's scripts may take in a slow guest.
const hearsBound = 10 * time.Second

// hears returns when the client has read what the kernel has told it.
func (c otherClient) hears(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, hearsBound)
	defer cancel()
	for ctx.Err() == nil {
		table, err := os.ReadFile("/proc/thread-self/net/netlink")
		if err != nil || !unread(string(table), c.pids) {
			return
		}
		pause(ctx, 5*time.Millisecond)
	}
}

// unread reports whether a socket on which one of the processes follows links has
// messages that it has not read. The table is the kernel's, with Eth (the protocol), Pid
// (the port: the first one's is the process), Groups and Rmem after the socket.
func unread(table string, pids []int) bool {
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 5 || f[1] != strconv.Itoa(unix.NETLINK_ROUTE) {
			continue
		}
		pid, _ := strconv.Atoi(f[2])
		groups, _ := strconv.ParseUint(f[3], 16, 32)
		if slices.Contains(pids, pid) && groups&unix.RTMGRP_LINK != 0 && f[4] != "0" {
			return true
		}
	}
	return false
}

// dhcpcdVersion is what `dhcpcd --version` says first, like 9.4.1; "": not known.
func dhcpcdVersion(ctx context.Context) string {
	out, _ := exec.CommandContext(ctx, "dhcpcd", "--version").Output()
	f := strings.Fields(string(out))
	if len(f) < 2 {
		return ""
	}
	return f[1]
}

// losesCommands reports whether a dhcpcd may take one command from its own tool, and
// not a second one in all its life: "cannot handle another client" (its issue 168). It
// waits for the end of an answer, and only some commands are answered.
func losesCommands(version string) bool {
	return strings.HasPrefix(version, "9.") || strings.HasPrefix(version, "10.0.")
}

// writeCommands tells dhcpcd commands as its tool would, in one message. The NIC belongs
// to the first one. The last one is to be one that dhcpcd answers: see [losesCommands].
// Nobody waits for the answer, which may get lost. Each family may have a dhcpcd of its
// own, which would forget that it is for one family only.
func (l *linux) writeCommands(ctx context.Context, nic string, first, last []string) error {
	var told bool
	var errs []error
	for _, family := range []string{"-4", "-6", ""} {
		args := slices.Clone(first)
		if family != "" {
			args = append(args, family)
		}
		msg := strings.Join(append(args, nic), "\x00") + "\n\x00" + strings.Join(last, "\x00") + "\x00"
		err := l.writeTo(ctx, nic+family+".sock", msg)
		if family == "" && errors.Is(err, fs.ErrNotExist) {
			err = l.writeTo(ctx, "sock", msg)
		}
		told = told || err == nil
		errs = append(errs, err)
	}
	if told {
		return nil
	}
	return errors.Join(errs...)
}

func (l *linux) writeTo(ctx context.Context, sock, msg string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", l.path("run/dhcpcd/"+sock))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(msg))
	return err
}
