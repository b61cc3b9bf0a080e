package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"replug/tests/lab/cable"
	"replug/tests/lab/tapguest"
)

// HelperMain is the main of the lab's helper processes. A program whose name is
// given as Config.Helper calls it with the arguments that follow:
//
//	tapguest CONFIG, cable CONFIG, enter PID ROOT PROGRAM..., dhcp DEVICE, reaper LAB PID START
func HelperMain(args []string) error {
	if len(args) == 0 {
		return errors.New("this is a helper of replug's lab: it is not called by hand")
	}
	switch args[0] {
	case "tapguest":
		return tapguest.Main(args[1:])
	case "enter":
		return tapguest.Enter(args[1:])
	case "dhcp":
		return tapguest.DHCP(args[1:])
	case "cable":
		return cable.Main(args[1:])
	case "reaper":
		return reap(args[1:])
	}
	return fmt.Errorf("the lab has no helper %q", args[0])
}

// BuildHelper builds the small helper program into dir and returns what
// Config.Helper wants. Tests call it once per package, in TestMain.
func BuildHelper(ctx context.Context, dir string) ([]string, error) {
	paths, err := Build(ctx, dir, "replug/tests/lab/cmd/lab")
	if err != nil {
		return nil, err
	}
	return []string{paths[0], "helper"}, nil
}

// Build builds Go programs of this module into dir, without cgo, and returns
// their paths.
func Build(ctx context.Context, dir string, packages ...string) ([]string, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-o", dir + "/"}, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	killGroup(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w: %s", strings.Join(packages, " "), err, tail(out))
	}
	paths := make([]string, len(packages))
	for i, p := range packages {
		paths[i] = filepath.Join(dir, filepath.Base(p))
	}
	return paths, nil
}

// help starts a helper in the node's name and waits until it says ready.
func (n *Node) help(ctx context.Context, name string, attr *syscall.SysProcAttr, kind string, config any) (*Proc, error) {
	if len(n.lab.rec.Helper) == 0 {
		return nil, fmt.Errorf("%s needs Config.Helper, see BuildHelper", name)
	}
	b, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	args := append(append([]string{}, n.lab.rec.Helper...), kind, string(b))
	p, err := n.Start(ctx, Cmd{Name: name, Args: args, Attr: attr, Files: []*os.File{w}})
	w.Close()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Now()) })
	defer stop()
	if line, _ := bufio.NewReader(r).ReadString('\n'); line != "ready\n" {
		p.Kill()
		p.Wait(context.WithoutCancel(ctx))
		said, _ := os.ReadFile(p.log)
		return nil, fmt.Errorf("%s did not get ready: %w", name, errors.Join(ctx.Err(), errors.New(tail(said))))
	}
	return p, nil
}

// cable lays a cable between the router and a node.
func (l *Lab) cable(ctx context.Context, node, dev string, subnet int) error {
	n := l.nodes[node]
	_, err := l.Router().help(ctx, "cable-"+node, nil, "cable", cable.Config{
		Ends: [2]cable.End{
			{NetNS: l.Router().NetNS(), Name: node, MAC: wireMAC(subnet, 1)},
			{NetNS: n.NetNS(), Name: dev, MAC: wireMAC(subnet, 2)},
		},
		MTU: l.rec.MTU, Threaded: l.rec.Threaded, Control: n.cableSocket(),
	})
	return err
}

func (n *Node) cableSocket() string {
	return filepath.Join(n.lab.Dir(), routerName, "cable-"+n.Name+".sock")
}

// Delay holds every frame on the host's uplink back, both ways. It needs
// Config.Wire = WireCable; 0 ends it.
func (n *Node) Delay(ctx context.Context, d time.Duration) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", n.cableSocket())
	if err != nil {
		return fmt.Errorf("delay on %s: its wire is no cable (set Config.Wire): %w", n.Name, err)
	}
	defer conn.Close()
	if t, ok := ctx.Deadline(); ok {
		conn.SetDeadline(t)
	}
	fmt.Fprintln(conn, d)
	reply, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || reply != "ok\n" {
		return fmt.Errorf("delay on %s: %s", n.Name, errors.Join(err, errors.New(strings.TrimSpace(reply))))
	}
	return nil
}

// startReaper starts the process that takes the lab down when this one dies.
func (l *Lab) startReaper(ctx context.Context) error {
	if l.rec.Detached || len(l.rec.Helper) == 0 {
		return nil
	}
	args := append(append([]string{}, l.rec.Helper...), "reaper", l.rec.Name,
		strconv.Itoa(l.rec.Owner.PID), strconv.FormatUint(l.rec.Owner.Start, 10))
	// It has no node: any directory of the lab serves for its log.
	n := &Node{lab: l, Name: "reaper"}
	if err := os.MkdirAll(n.Dir(), 0o700); err != nil {
		return fmt.Errorf("reaper: %w", err)
	}
	_, err := n.launch(ctx, Cmd{Name: "reaper", Args: args, Dir: "/"}, func(start func() error) error { return start() })
	return err
}

// reap waits for the owner's death and takes the lab down.
func reap(args []string) error {
	if len(args) != 3 {
		return errors.New("usage: reaper LAB PID START")
	}
	pid, err1 := strconv.Atoi(args[1])
	start, err2 := strconv.ParseUint(args[2], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("reaper: %w", err)
	}
	owner := pidRef{PID: pid, Start: start}
	fd, err := unix.PidfdOpen(pid, 0)
	for err == nil && owner.alive() {
		// A pidfd becomes readable when its process ends.
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if errors.Is(err, unix.EINTR) {
			err = nil
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if rec, err := readRecord(args[0]); err == nil && rec.Owner != owner {
		return nil // somebody else's lab by now
	}
	return Down(ctx, args[0])
}
