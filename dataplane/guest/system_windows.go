package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/windows"
)

const stateFile = "state.json"

var defaultRoot = systemDrive()

// systemDrive is what documents call "/".
func systemDrive() string {
	if v := filepath.VolumeName(os.Getenv("SystemRoot")); v != "" {
		return v + `\`
	}
	return `C:\`
}

// syncDir does nothing: Windows writes no directory on demand.
func syncDir(string) error { return nil }

func uptime() time.Duration { return windows.DurationSinceBoot() }

func openSystem(_ context.Context, c *Config, log logger) (system, error) {
	return &win{disk: files{c.Root}, own: files{filepath.Join(c.Root, "ProgramData", "Replug")}, log: log, run: runWindows}, nil
}

func runWindows(ctx context.Context, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		said := strings.TrimSpace(string(out))
		return string(out), fmt.Errorf("%s: %w: %s", name, err, said[:min(len(said), 300)])
	}
	return string(out), nil
}

// openPort finds none: the port would need a driver that Windows doesn't bring.
func openPort(string) (io.ReadWriteCloser, error) {
	return nil, fmt.Errorf("second channel: %w", errors.Join(os.ErrNotExist))
}
