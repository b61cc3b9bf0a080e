package compute

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"replug/directory/vnet"
)

// QEMU runs machines as QEMU processes. It is a [Driver].
type QEMU struct {
	c       Config
	probing sync.Mutex
	known   verdict // what a probe has found; guarded by probing
	asking  sync.Mutex
	program program // guarded by asking
	watches sync.WaitGroup
	stopAll context.CancelFunc // ends what runs beside

	mu       sync.Mutex
	machines map[string]*machine // those in use or running
	told     map[string]string   // of whose state it was said that it can't be gone back to
	closed   bool
}

var _ Driver = (*QEMU)(nil)

// A machine is this package's memory of one VM.
type machine struct {
	busy  sync.Mutex // held over a change
	users int        // of this struct
	run   *process   // nil: off
}

const (
	patience = 5 * time.Second  // for what a healthy QEMU does at once: answer its monitor, or quit
	starting = 30 * time.Second // for QEMU to make its machine, on a busy host
)

// New opens the directory and adopts the machines that run.
func New(ctx context.Context, c Config) (*QEMU, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("compute: %w", err)
	}
	q := &QEMU{c: c, machines: make(map[string]*machine), told: make(map[string]string)}
	if q.c.Probe == nil {
		q.c.Probe = q.ProbeKVM
	}
	if err := os.MkdirAll(q.dir(""), 0o755); err != nil {
		return nil, fmt.Errorf("compute: %w", err)
	}
	beside, end := context.WithCancel(context.Background())
	q.stopAll = end
	states, err := q.List(ctx)
	if err != nil {
		return nil, errors.Join(err, q.Close())
	}
	for _, s := range states {
		m, unlock := q.lock(s.ID)
		if p := q.running(m); p != nil {
			q.c.Log.Info("machine runs, adopted", "vm", s.ID, "pid", p.pid)
		}
		unlock()
	}
	q.watches.Go(func() { q.watchConsoles(beside) })
	return q, nil
}

// Close lets go of the machines, which run on.
func (q *QEMU) Close() error {
	q.stopAll()
	q.mu.Lock()
	q.closed = true
	for _, m := range q.machines {
		if m.run != nil {
			m.run.fd.Close()
		}
	}
	q.mu.Unlock()
	q.watches.Wait()
	return nil
}

func (q *QEMU) dir(id string) string { return filepath.Join(q.c.Dir, "vms", id) }

// lock gives one caller the machine. The machine's process is found again if it
// runs and is not known: a former agent has started it.
func (q *QEMU) lock(id string) (*machine, func()) {
	q.mu.Lock()
	m := q.machines[id]
	if m == nil {
		m = new(machine)
		q.machines[id] = m
	}
	m.users++
	q.mu.Unlock()
	m.busy.Lock()
	if q.running(m) == nil {
		if p := find(q.dir(id)); p != nil {
			q.watch(id, m, p)
		}
	}
	return m, func() {
		m.busy.Unlock()
		q.mu.Lock()
		defer q.mu.Unlock()
		m.users--
		q.forget(id, m)
	}
}

// forget drops a machine that nobody uses and that doesn't run. The caller holds mu.
func (q *QEMU) forget(id string, m *machine) {
	if m.users == 0 && m.run == nil && q.machines[id] == m {
		delete(q.machines, id)
	}
}

func (q *QEMU) running(m *machine) *process {
	q.mu.Lock()
	defer q.mu.Unlock()
	if m.run != nil && gone(context.Background(), m.run, 0) {
		return nil
	}
	return m.run
}

// watch waits for the end of a process, and tells.
func (q *QEMU) watch(id string, m *machine, p *process) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		p.fd.Close()
		return
	}
	m.run = p
	q.watches.Go(func() {
		ended := p.await()
		p.fd.Close()
		q.mu.Lock()
		if m.run == p { // not yet the next one
			m.run = nil
		}
		q.forget(id, m)
		q.mu.Unlock()
		if ended {
			q.c.OnExit(Exit{ID: id, Asked: p.asked.Load(), Said: lastWords(q.dir(id))})
		}
	})
}

// Ensure makes the machine run: see [Driver].
func (q *QEMU) Ensure(ctx context.Context, spec vnet.Machine, nic NIC) (State, error) {
	if err := checkMachine(&spec, &nic); err != nil {
		return State{}, err
	}
	m, unlock := q.lock(spec.ID)
	defer unlock()
	if p := q.running(m); p != nil {
		err := errors.Join(q.answers(ctx, spec.ID, patience), q.wake(ctx, spec.ID))
		return q.state(spec.ID, p), err
	}
	p, resumed, err := q.start(ctx, spec, nic, m)
	if err != nil {
		return State{}, fmt.Errorf("start machine %s: %w", spec.ID, err)
	}
	s := q.state(spec.ID, p)
	s.Resumed = resumed
	return s, nil
}

// answers proves that a process is a QEMU that works. Whether its guest runs is
// the guest's affair.
func (q *QEMU) answers(ctx context.Context, id string, in time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, in)
	defer cancel()
	mon, err := q.c.Open(ctx, filepath.Join(q.dir(id), powerSocket))
	if err == nil {
		_, err = mon.Status(ctx)
		mon.Close()
	}
	if err != nil {
		return fmt.Errorf("machine %s: %w: %w (stop it at once, then start it)", id, ErrHung, err)
	}
	return nil
}

// start makes what is missing and runs QEMU. What it made is removed if that fails.
func (q *QEMU) start(ctx context.Context, spec vnet.Machine, nic NIC, m *machine) (_ *process, resumed bool, err error) {
	if _, err := exec.LookPath(q.c.QEMU); err != nil {
		return nil, false, fmt.Errorf("%w: %w (install qemu-system-x86)", ErrNoQEMU, err)
	}
	im, kept, err := q.imageOf(&spec)
	if err != nil {
		return nil, false, err
	}
	l := launch{machine: spec, nic: nic, image: im, dir: q.dir(spec.ID)}
	_, statErr := os.Stat(l.dir)
	if errors.Is(statErr, fs.ErrNotExist) {
		defer func() {
			if err != nil {
				err = errors.Join(err, os.RemoveAll(l.dir))
			}
		}()
	}
	if err := errors.Join(os.MkdirAll(l.dir, 0o750), syncDir(q.dir(""))); err != nil {
		return nil, false, full(err)
	}
	if !kept {
		if err := l.image.keep(l.dir); err != nil {
			return nil, false, err
		}
	}
	if err := q.makeDisks(ctx, l.dir, &spec, im); err != nil {
		return nil, false, err
	}
	if l.accel, err = q.accel(ctx, im.Kernel); err != nil {
		return nil, false, err
	}
	mark, err := unmark(l.dir)
	if err != nil {
		return nil, false, err
	}
	l.resume = mark != "" && q.readable(spec.ID, mark)
	p, err := q.run(ctx, &l, m)
	if err == nil && mark != "" {
		q.forgetState(ctx, spec.ID)
	}
	return p, l.resume, err
}

// run starts QEMU and returns when its monitor answers.
func (q *QEMU) run(ctx context.Context, l *launch, m *machine) (*process, error) {
	id := l.machine.ID
	p, err := q.launch(ctx, l)
	if err != nil {
		return nil, err
	}
	q.watch(id, m, p)
	if err := q.answers(ctx, id, starting); err != nil {
		p.asked.Store(true)
		said := lastWords(l.dir)
		return nil, fmt.Errorf("%w: %s: %w", ErrBoot, said, errors.Join(err, q.end(p)))
	}
	return p, nil
}

// List returns the machines of the host: see [Driver].
func (q *QEMU) List(ctx context.Context) ([]State, error) {
	entries, err := os.ReadDir(q.dir(""))
	if err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	var all []State
	for _, e := range entries {
		if !e.IsDir() || !word.MatchString(e.Name()) {
			continue
		}
		s, err := q.State(ctx, e.Name())
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// State returns one machine: see [Driver]. It does not wait for a change of it.
func (q *QEMU) State(_ context.Context, id string) (State, error) {
	if !word.MatchString(id) {
		return State{ID: id, Power: vnet.PowerAbsent}, nil
	}
	q.mu.Lock()
	m := q.machines[id]
	q.mu.Unlock()
	if m == nil {
		return q.state(id, nil), nil
	}
	return q.state(id, q.running(m)), nil
}

func (q *QEMU) state(id string, p *process) State {
	s := State{ID: id, Power: vnet.PowerOff, Dir: q.dir(id)}
	if _, err := os.Stat(s.Dir); err != nil {
		return State{ID: id, Power: vnet.PowerAbsent}
	}
	s.Monitor, s.Console = filepath.Join(s.Dir, monitorSocket), filepath.Join(s.Dir, consoleFile)
	s.Channel = filepath.Join(s.Dir, channelSocket)
	r, err := readRecord(s.Dir)
	if err != nil {
		s.Problem = err.Error()
	}
	s.Accel = r.Accel
	if p != nil {
		s.Power, s.PID = vnet.PowerOn, p.pid
	} else {
		s.Saved = q.saved(id)
	}
	return s
}
