package compute

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	savedFile = "saved"          // in the machine's directory
	savedName = "replug"         // of the snapshot in its disks
	saving    = 30 * time.Second // to write a guest's memory, on a busy host
)

// Save ends the machine and keeps its state: see [Driver]. The mark is written when
// the state is whole and the guest no longer runs, and is gone before the guest runs
// again: a state is never gone back to twice. It says which QEMU can read the state.
func (q *QEMU) Save(ctx context.Context, id string) error {
	if !word.MatchString(id) {
		return fmt.Errorf("save machine %q: %w: its id is not a name", id, ErrSpec)
	}
	m, unlock := q.lock(id)
	defer unlock()
	p := q.running(m)
	if p == nil {
		if q.saved(id) {
			return nil
		}
		return fmt.Errorf("save machine %s: %w", id, ErrOff)
	}
	if err := q.save(ctx, id, p); err != nil {
		return fmt.Errorf("save machine %s: %w", id, err)
	}
	return nil
}

func (q *QEMU) save(ctx context.Context, id string, p *process) error {
	r, err := readRecord(q.dir(id)) // the QEMU that runs, which may be of before an upgrade
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, saving)
	defer cancel()
	mon, err := q.c.Open(ctx, filepath.Join(q.dir(id), powerSocket))
	if err != nil {
		return err
	}
	defer mon.Close()
	if err := mon.Stop(ctx); err != nil {
		return err
	}
	err = mon.Save(ctx, savedName)
	if err == nil {
		err = errors.Join(replace(filepath.Join(q.dir(id), savedFile), []byte(r.Format)), syncDir(q.dir(id)))
	}
	if err != nil {
		return errors.Join(err, goOn(ctx, q.dir(id), mon))
	}
	p.asked.Store(true)
	_ = mon.Quit(ctx) // whether it did shows below
	if gone(ctx, p, patience) {
		return nil
	}
	return q.end(p)
}

// goOn lets a guest go on whose state rests nowhere. One that is still marked as saved
// stands still until [QEMU.wake] has taken the mark away.
func goOn(ctx context.Context, dir string, mon Monitor) error {
	_, err := unmark(dir)
	if _, gone := os.Lstat(filepath.Join(dir, savedFile)); !errors.Is(gone, fs.ErrNotExist) {
		return fmt.Errorf("the guest stands still, its mark stays: %w", errors.Join(err, gone))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	return errors.Join(err, mon.Cont(ctx))
}

// saved reports whether the machine's state rests, and can be gone back to.
func (q *QEMU) saved(id string) bool {
	mark, err := readMark(q.dir(id))
	return err == nil && mark != "" && q.readable(id, mark)
}

// readMark returns who can read the machine's state; "" if there is none.
func readMark(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, savedFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", err
	}
	return orElse(strings.TrimSpace(string(b)), "an unknown QEMU"), nil
}

// unmark takes the mark away for good, before the guest runs again, and returns it. One
// that came back after a crash would take the disks back to what they were when the
// guest was saved.
func unmark(dir string) (string, error) {
	mark, err := readMark(dir)
	if mark == "" {
		return "", err
	}
	if err := os.Remove(filepath.Join(dir, savedFile)); err != nil {
		return mark, err
	}
	return mark, syncDir(dir)
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// wake lets a guest go on whose agent died before it could let QEMU go.
func (q *QEMU) wake(ctx context.Context, id string) error {
	mark, err := unmark(q.dir(id))
	if mark == "" || err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	mon, err := q.c.Open(ctx, filepath.Join(q.dir(id), powerSocket))
	if err != nil {
		return err
	}
	defer mon.Close()
	return mon.Cont(ctx)
}

// forgetState gives the room back that a state took in the disks. It only costs
// room if that fails.
func (q *QEMU) forgetState(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	mon, err := q.c.Open(ctx, filepath.Join(q.dir(id), powerSocket))
	if err == nil {
		err = mon.Drop(ctx, savedName)
		mon.Close()
	}
	if err != nil {
		q.c.Log.Warn("a state that is no longer needed stays in the disk", "vm", id, "err", err)
	}
}
