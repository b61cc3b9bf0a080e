package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// markLab stands in the environment of every process of a lab, and so in that
// of its children, wherever they go.
const markLab = "REPLUG_LAB="

// A Cmd is a program to start.
type Cmd struct {
	Name  string   // of its log and record; "": the program's
	Args  []string // program and arguments
	Env   []string // added to this process's
	Dir   string   // working directory; "": the node's
	Attr  *syscall.SysProcAttr
	Files []*os.File // as descriptors 3, 4, ... of the process
}

// A Proc is a process that was started in a lab, by this process or another.
type Proc struct {
	Name string
	ref  pidRef
	rec  string        // its record's file
	log  string        // its output
	done chan struct{} // closed when a child of ours has ended; nil for others' children
	err  error         // of the child, readable after done
}

// procRecord is a Proc on disk.
type procRecord struct {
	pidRef
	Name string   `json:"name"`
	Node string   `json:"node"`
	Args []string `json:"args"`
	Log  string   `json:"log"`
}

// Start starts a program inside the namespace, in a session of its own: it
// outlives this process, until it is stopped or the lab goes down. Output goes
// to <dir>/<name>.log. Ctx bounds the start only.
func (n *Node) Start(ctx context.Context, c Cmd) (*Proc, error) {
	return n.launch(ctx, c, n.Do)
}

// launch starts a process on the thread that where gives it.
func (n *Node) launch(ctx context.Context, c Cmd, where func(start func() error) error) (*Proc, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.Name == "" {
		c.Name = filepath.Base(c.Args[0])
	}
	log := filepath.Join(n.Dir(), c.Name+".log")
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", c.Name, err)
	}
	defer out.Close()

	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Env, cmd.Dir, cmd.ExtraFiles = n.environ(c.Env), c.Dir, c.Files
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if c.Attr != nil {
		*cmd.SysProcAttr = *c.Attr
	}
	cmd.SysProcAttr.Setsid = true
	if cmd.Dir == "" {
		cmd.Dir = n.Dir()
	}
	if err := where(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", c.Name, n.Name, err)
	}
	return n.adopt(cmd, c, log)
}

// adopt writes the record of a fresh child and waits for its end.
func (n *Node) adopt(cmd *exec.Cmd, c Cmd, log string) (*Proc, error) {
	ref, err := refer(cmd.Process.Pid)
	if err != nil {
		// It has ended already, but isn't waited for: its pid is still its own.
		ref = pidRef{PID: cmd.Process.Pid}
	}
	p := &Proc{
		Name: c.Name, ref: ref, log: log, done: make(chan struct{}),
		rec: filepath.Join(n.lab.Dir(), "proc", strconv.Itoa(ref.PID)+".json"),
	}
	err = writeJSON(p.rec, procRecord{pidRef: ref, Name: c.Name, Node: n.Name, Args: c.Args, Log: log})
	go func() {
		p.err = cmd.Wait()
		os.Remove(p.rec)
		close(p.done)
	}()
	if err != nil {
		p.Kill()
		return nil, err
	}
	return p, nil
}

// PID returns the process id.
func (p *Proc) PID() int { return p.ref.PID }

// Log returns the file that holds what the process has printed.
func (p *Proc) Log() string { return p.log }

// Alive reports whether the process runs.
func (p *Proc) Alive() bool {
	select {
	case <-p.done: // never, if nil
		return false
	default:
		return p.ref.alive()
	}
}

// Signal sends a signal, but never to another process that got the same id.
func (p *Proc) Signal(sig syscall.Signal) error { return p.ref.signal(sig) }

// Kill is kill -9. It doesn't wait.
func (p *Proc) Kill() error { return p.Signal(unix.SIGKILL) }

// Wait waits for the process to end and returns how it ended: nil for success,
// an [exec.ExitError] otherwise. The end of another process's child is known,
// but not how. The error is the context's if that ends first.
func (p *Proc) Wait(ctx context.Context) error {
	if p.done != nil {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s (pid %d): %w", p.Name, p.ref.PID, context.Cause(ctx))
		case <-p.done:
			return p.err
		}
	}
	for p.ref.alive() {
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("wait for %s (pid %d): %w", p.Name, p.ref.PID, err)
		}
	}
	return nil
}

// Says waits until the process's log holds the text, and fails at once when the
// process ends without.
func (p *Proc) Says(ctx context.Context, text string) error {
	for {
		alive := p.Alive()
		said, err := os.ReadFile(p.log)
		if err != nil {
			return fmt.Errorf("read the log of %s: %w", p.Name, err)
		}
		if bytes.Contains(said, []byte(text)) {
			return nil
		}
		if !alive {
			return fmt.Errorf("%s ended before it said %q: %s", p.Name, text, tail(said))
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return fmt.Errorf("wait for %s to say %q: %w: %s", p.Name, text, err, tail(said))
		}
	}
}

// Until waits for something that no event tells: it asks every few milliseconds
// until ok or ctx ends. The error then holds the last answer's reason.
func Until(ctx context.Context, what string, ok func() error) error {
	for {
		reason := ok()
		if reason == nil {
			return nil
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return fmt.Errorf("wait for %s: %w: %w", what, err, reason)
		}
	}
}

// Done is closed when the process has ended; nil for another process's child.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Stop is SIGTERM, then kill -9 when ctx ends or after ten seconds; it returns
// an error if that was needed.
func (p *Proc) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := p.Signal(unix.SIGTERM); err != nil {
		return nil // gone already
	}
	err := p.Wait(ctx)
	if err == nil || ctx.Err() == nil {
		return nil // how it ended after SIGTERM is its own business
	}
	p.Kill()
	if p.done != nil {
		<-p.done
	}
	return fmt.Errorf("%s did not stop at SIGTERM and was killed: %w", p.Name, err)
}

// Procs returns the recorded processes of the lab that are alive.
func (l *Lab) Procs() []*Proc {
	var procs []*Proc
	for _, r := range procRecords(l.rec.Name) {
		if r.alive() {
			procs = append(procs, &Proc{Name: r.Name, ref: r.pidRef, log: r.Log})
		}
	}
	return procs
}

func procRecords(lab string) []procRecord {
	var records []procRecord
	files, _ := filepath.Glob(filepath.Join(Root, lab, "proc", "*.json"))
	for _, f := range files {
		var r procRecord
		if b, err := os.ReadFile(f); err == nil && json.Unmarshal(b, &r) == nil {
			records = append(records, r)
		}
	}
	return records
}

// killGroup makes the end of cmd's context kill its children too.
func killGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 2 * time.Second
	cmd.Cancel = func() error {
		err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		if errors.Is(err, unix.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
}
