package guest

import (
	"bytes"
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
const cutOff = "was cut off by a reboot, or by the end of the agent, and is not run again"

// runOnce runs the commands that were not begun before, in their order, and goes on
// after one that fails. Each is remembered before it begins: one that restarts the
// machine must not do so for ever. A failure is reported again, not repeated.
func (m files) runOnce(commands []vnet.Command, s *state, shell func(context.Context, string) *exec.Cmd) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	var errs []error
	for _, c := range commands {
		if c.ID == "" || c.Command == "" || strings.ContainsRune(c.Command, 0) {
			errs = append(errs, fmt.Errorf("command %q: %w (want an id and a line)", c.ID, errInvalid))
			continue
		}
		if _, begun := s.Ran[c.ID]; !begun {
			if err := m.runCommand(shell(ctx, c.Command), c.ID, s); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		if why := s.Ran[c.ID]; why != "" {
			errs = append(errs, fmt.Errorf("command %s: %s", c.ID, why))
		}
	}
	return errors.Join(errs...)
}

// runCommand runs one and notes what came of it. An error: it was not begun.
func (m files) runCommand(cmd *exec.Cmd, id string, s *state) error {
	if s.Ran == nil {
		s.Ran = map[string]string{}
	}
	s.Ran[id] = cutOff
	if err := s.save(m); err != nil {
		delete(s.Ran, id)
		return fmt.Errorf("command %s is not run: %w", id, err)
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &tail{&said}, &tail{&said}
	cmd.WaitDelay = 5 * time.Second // what it left behind may hold its output open
	s.Ran[id] = ""
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		s.Ran[id] = strings.TrimSpace(err.Error() + ": " + said.String())
	}
	return s.save(m)
}

// A tail keeps the end of what is written.
type tail struct{ b *bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	const most = 500
	t.b.Write(p)
	if over := t.b.Len() - most; over > 0 {
		t.b.Next(over)
	}
	return len(p), nil
}
