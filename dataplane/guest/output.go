package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// An output is the file of what commands print, for the machine's owner to read: all of
// it, whoever of agent and command ends first.
type output struct {
	*os.File
	begin int64 // of what the last command prints
}

const (
	outputFile = "commands.log" // beside the state
	mostOutput = 16 << 20       // bytes
	mostSaid   = 500            // bytes of it that a report says
)

func (m files) openOutput() (*output, error) {
	path := filepath.Join(filepath.Dir(m.path(stateFile)), outputFile)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err != nil {
		return nil, fmt.Errorf("make the directory of its output: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the file of its output: %w", err)
	}
	return &output{File: f}, nil
}

// title says whose output comes next.
func (o *output) title(id string) {
	o.bound()
	fmt.Fprintf(o, "== %s\n", id) // a full disk is no reason not to run it
	o.begin = o.size()
}

// bound begins the file anew if it is too long: a command that prints without an end
// doesn't fill the disk.
func (o *output) bound() {
	if o.size() > mostOutput && o.Truncate(0) == nil {
		o.begin = 0
	}
}

// end is the end of what the command has printed.
func (o *output) end() string {
	size := o.size()
	b := make([]byte, min(mostSaid, max(size-o.begin, 0)))
	n, _ := o.ReadAt(b, size-int64(len(b)))
	return strings.TrimSpace(string(b[:n]))
}

func (o *output) size() int64 {
	info, err := o.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}
