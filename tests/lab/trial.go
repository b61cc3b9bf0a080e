package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// A Trial is a program that is to run on another kernel or processor than this
// machine's: alone, as root, in a machine whose file system is gone with it.
type Trial struct {
	Arch    string            // amd64 (as ""), arm64
	Modules []string          // loaded first, with those that they depend on
	Files   map[string]string // path in the machine, without the leading slash -> file or directory here
	Command string            // for a shell, in /
	Memory  int               // MiB; 0: 1,024
}

// A Verdict is how a trial went.
type Verdict struct {
	Kernel string // release
	Code   int    // exit code of the command
	Output string // standard output and error
}

// exitLine is the last word of guest/trial.
var exitLine = regexp.MustCompile(`(?m)^trial: (\S+) exit ([0-9]+)\r?$`)

// Run boots the distribution's kernel under emulation and returns what the
// command said. It waits until the machine is off, or ctx ends.
func (t Trial) Run(ctx context.Context) (Verdict, error) {
	cache, err := CacheDir()
	if err != nil {
		return Verdict{}, err
	}
	arch := or(t.Arch, "amd64")
	kernel, err := kernelWith(ctx, cache, arch, t.Modules)
	if err != nil {
		return Verdict{}, err
	}
	dir, err := os.MkdirTemp("", "replug-trial-")
	if err != nil {
		return Verdict{}, err
	}
	defer os.RemoveAll(dir)
	initrd, err := t.initrd(ctx, filepath.Join(dir, "root"), kernel)
	if err != nil {
		return Verdict{}, fmt.Errorf("make the trial's file system: %w", err)
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "initrd.img"), initrd, 0o600),
		os.WriteFile(filepath.Join(dir, "cmdline"), []byte(trialLine(arch)), 0o600),
		os.Symlink(filepath.Join(kernel, "vmlinuz"), filepath.Join(dir, "vmlinuz")),
	); err != nil {
		return Verdict{}, err
	}
	return boot(ctx, dir, arch, or(t.Memory, 1024))
}

// boot runs the machine. Its console is the kernel's; the command has a line of
// its own, into which no kernel message falls.
func boot(ctx context.Context, dir, arch string, memory int) (Verdict, error) {
	args, err := machine(dir, arch, TCG, memory)
	if err != nil {
		return Verdict{}, err
	}
	said := filepath.Join(dir, "said")
	args = append(args, "-smp", "2", "-no-reboot", "-serial", "stdio")
	cmd := exec.CommandContext(ctx, args[0], append(args[1:], secondLine(arch, said)...)...)
	killGroup(cmd)
	console, ended := cmd.CombinedOutput()
	out, err := os.ReadFile(said)
	if err != nil {
		return Verdict{}, fmt.Errorf("QEMU did not start: %w: %s", ended, tail(console))
	}
	out = bytes.ReplaceAll(out, []byte("\r"), nil)
	last := exitLine.FindSubmatchIndex(out)
	if last == nil {
		return Verdict{Output: string(out)}, fmt.Errorf("the machine ended before its command did (%w, %w): console: %s; command: %s",
			ended, context.Cause(ctx), tail(console), tail(out))
	}
	code, err := strconv.Atoi(string(out[last[4]:last[5]]))
	return Verdict{Kernel: string(out[last[2]:last[3]]), Code: code, Output: string(out[:last[0]])}, err
}

// initrd packs the trial's root.
func (t Trial) initrd(ctx context.Context, dir, kernel string) ([]byte, error) {
	for _, d := range guestDirs {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		return nil, err
	}
	if err := installBusybox(ctx, filepath.Join(dir, "bin")); err != nil {
		return nil, err
	}
	if other := filepath.Join(kernel, "busybox"); t.Arch != "" {
		if err := copyFile(filepath.Join(dir, "bin", "busybox"), other, 0o755); err != nil {
			return nil, err
		}
	}
	var out bytes.Buffer
	w := &cpioWriter{out: &out}
	if err := w.tree("", dir); err != nil {
		return nil, err
	}
	w.dir("lib")
	if err := w.tree("lib/modules", filepath.Join(kernel, "modules")); err != nil {
		return nil, err
	}
	made := map[string]bool{"bin": true, "etc": true, "tmp": true, ".": true}
	for name, from := range t.Files {
		w.parents(name, made)
		if err := w.tree(name, from); err != nil {
			return nil, err
		}
	}
	init, err := guestFiles.ReadFile("guest/trial")
	if err != nil {
		return nil, err
	}
	w.file("init", 0o755, init)
	w.file("command", 0o755, []byte("#!/bin/sh\n"+strings.TrimSpace(t.Command)+"\n"))
	return out.Bytes(), w.close()
}

// parents adds the directories above name that aren't there yet.
func (w *cpioWriter) parents(name string, made map[string]bool) {
	above := filepath.Dir(name)
	if made[above] {
		return
	}
	w.parents(above, made)
	w.dir(above)
	made[above] = true
}

func or[T comparable](v, otherwise T) T {
	var none T
	if v == none {
		return otherwise
	}
	return v
}
