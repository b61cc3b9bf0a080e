package compute

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
)

// A program is the QEMU that is installed, as it was asked last.
type program struct {
	file    os.FileInfo
	version string
}

var versionForm = regexp.MustCompile(`version (\d+\.\d+)`)

// format says who can read a state that is written now: a machine's devices change
// with each release of QEMU, and with its type; not with a release's corrections. It
// is asked once, and again when there is another program, which needs no agent's
// restart. "" when that is not known: the program is just being replaced.
func (q *QEMU) format() string {
	path, err := exec.LookPath(q.c.QEMU)
	if err != nil {
		return ""
	}
	file, err := os.Stat(path)
	if err != nil {
		return ""
	}
	q.asking.Lock()
	defer q.asking.Unlock()
	p := &q.program
	if p.file == nil || !os.SameFile(p.file, file) || !p.file.ModTime().Equal(file.ModTime()) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		said, err := exec.CommandContext(ctx, path, "--version").Output()
		m := versionForm.FindSubmatch(said)
		if err != nil || m == nil {
			q.c.Log.Warn("QEMU does not tell its version", "program", path, "said", string(said), "err", err)
			return ""
		}
		*p = program{file, string(m[1])}
	}
	return fmt.Sprintf("QEMU %s, machine %s", p.version, q.c.Machine)
}

// readable reports whether a state can be gone back to by the QEMU of now. It says once
// of a machine that it can't: it would only be refused when an owner waits for it.
func (q *QEMU) readable(id, mark string) bool {
	now := q.format()
	if now == "" || now == mark {
		return true // if it is not known, its next start shows
	}
	q.mu.Lock()
	told := q.told[id] == mark+now
	q.told[id] = mark + now
	q.mu.Unlock()
	if !told {
		q.c.Log.Warn("machine's saved state is of another QEMU and is not gone back to: the machine is off, its pool makes another one",
			"vm", id, "saved_by", mark, "now", now)
	}
	return false
}
