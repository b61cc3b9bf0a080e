package guest

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"replug/directory/vnet"
)

// commandTime is what all commands of a document may take together.
const commandTime = 5 * time.Minute

// cutOff is what is remembered of a command while it runs.
const cutOff = "was cut off by a reboot, or went on when the agent ended, and is not run again"

// A task is what is left of a document when its settings are applied and reported:
// its commands. cloud-init has the same order, user data after its report: whoever
// waits for the machine does not wait for what its owner has it do.
type task struct {
	commands []vnet.Command
	report   vnet.GuestReport // on the settings
	wrong    error            // with them
	heard    <-chan struct{}  // closed when the report's fate is known
	ran      chan struct{}    // closed at the end
}

// hand gives the runner a task, in place of one that still waits: a newer document
// has all of its commands. The caller, the applier, holds mu.
func (a *agent) hand(t task) {
	select {
	case old := <-a.tasks:
		close(old.ran)
	default:
	}
	t.ran = make(chan struct{})
	a.ran = t.ran
	a.tasks <- t
}

// runner runs commands beside all else: the next document is applied meanwhile.
func (a *agent) runner(ctx context.Context) {
	for {
		var t task
		select {
		case <-ctx.Done():
			return
		case t = <-a.tasks:
		}
		select {
		case <-ctx.Done():
			return
		case <-t.heard:
		}
		a.runTask(ctx, &t)
		close(t.ran)
	}
}

// runTask runs what was not begun before, and reports once more if that went wrong.
// A document that was taken meanwhile has its own report, which says that as well.
func (a *agent) runTask(ctx context.Context, t *task) {
	err := a.sys.files().runOnce(ctx, t.commands, a.state, a.sys.command)
	r := t.report
	if r.Error = words(t.wrong, err); r.Error == t.report.Error || ctx.Err() != nil {
		return
	}
	a.log.say("commands of config epoch %s went wrong: %v", r.Epoch, err)
	a.mu.Lock()
	if a.since == r.Epoch {
		a.post(&r)
	}
	a.mu.Unlock()
	a.channel.poke()
}

// runOnce runs the commands that were not begun before, in their order, and goes on
// after one that fails. It returns what went wrong in any of them, also earlier.
func (m files) runOnce(ctx context.Context, commands []vnet.Command, s *state, command func(context.Context, string) *exec.Cmd) error {
	within, cancel := context.WithCancel(context.Background())
	defer time.AfterFunc(commandTime, cancel).Stop() // not cancelled by our own end: see runCommand
	var errs []error
	for _, c := range commands {
		if ctx.Err() != nil {
			break
		}
		if c.ID == "" || c.Command == "" || strings.ContainsRune(c.Command, 0) {
			errs = append(errs, fmt.Errorf("command %q: %w (want an id and a line)", c.ID, errInvalid))
		} else if err := m.runCommand(ctx, c.ID, s, command(within, c.Command)); err != nil {
			errs = append(errs, fmt.Errorf("command %s is not run: %w", c.ID, err))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(append(errs, s.failures(commands))...)
}

// failures are what is remembered of the commands that went wrong, which is said
// again with each report. The caller holds mu.
func (s *state) failures(commands []vnet.Command) error {
	var errs []error
	for _, c := range commands {
		if why := s.Ran[c.ID]; why != "" && c.ID != s.running {
			errs = append(errs, fmt.Errorf("command %s: %s", c.ID, why))
		}
	}
	return errors.Join(errs...)
}

// runCommand runs one, unless it was begun before, and notes what came of it. It is
// remembered before it begins: one that restarts the machine must not do so for ever.
// The end of the agent does not end it: it may be what replaces the agent.
func (m files) runCommand(ctx context.Context, id string, s *state, cmd *exec.Cmd) error {
	out, err := m.openOutput()
	if err != nil {
		return err
	}
	defer out.Close()
	if begun, err := s.begin(m, id); begun || err != nil {
		return err
	}
	out.title(id)
	cmd.Stdout, cmd.Stderr = out.File, out.File // a pipe would end with the agent, and the command with that
	ended := make(chan error, 1)
	if err := cmd.Start(); err != nil {
		ended <- err
	} else {
		go func() { ended <- cmd.Wait() }()
	}
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			out.bound()
		case err := <-ended:
			why := ""
			if err != nil {
				why = strings.TrimSuffix(err.Error()+": "+out.end(), ": ")
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.Ran[id], s.running = why, ""
			return s.save(m)
		}
	}
}

// begin remembers a command as begun, unless it is.
func (s *state) begin(m files, id string) (begun bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, begun = s.Ran[id]; begun {
		return true, nil
	}
	if s.Ran == nil {
		s.Ran = map[string]string{}
	}
	s.Ran[id] = cutOff
	if err = s.save(m); err != nil {
		delete(s.Ran, id)
		return false, err
	}
	s.running = id
	return false, nil
}
