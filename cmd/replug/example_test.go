package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Each command has an example, which it takes: those of the API come as far as to miss
// their certificates, and say whose the things are that they name, since an operator,
// as whom the program calls unless told, has none; those that would change this machine
// are read only.
func TestExamples(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("ann.pub", []byte("ssh-ed25519 AAAA ann"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"REPLUG_TENANT", "REPLUG_SERVER", "REPLUG_AS"} {
		t.Setenv(v, "")
	}
	t.Setenv("REPLUG_PKI", t.TempDir())
	seen := 0
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Example == "" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
		for line := range strings.Lines(cmd.Example) {
			seen++
			if err := try(words(line)); err != "" {
				t.Errorf("%s: example %q: %s", cmd.CommandPath(), line, err)
			}
		}
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() && sub.Name() != "completion" && sub.Name() != "help" {
				walk(sub)
			}
		}
	}
	walk(newRoot())
	if seen < 100 {
		t.Errorf("only %d examples were tried", seen)
	}
}

// words are those of a command line in a shell, up to a pipe, a file, or what is said
// of it.
func words(line string) (all []string) {
	line = strings.TrimSpace(line)
	for _, end := range []string{"    ", " | ", " > "} {
		line, _, _ = strings.Cut(line, end)
	}
	for i, part := range strings.Split(line, `"`) {
		if i%2 == 1 {
			all = append(all, part)
		} else {
			all = append(all, strings.Fields(part)...)
		}
	}
	return all
}

// owned are the commands that are about what a tenant has, once they name it.
var owned = []string{"vm", "network", "port", "group", "service", "vtep", "trace", "capture", "drops", "flows"}

// local are the commands that ask no server.
var local = []string{"lab", "demo", "bench", "pki", "restore", "host check"}

// try says what is wrong with a command line, or "".
func try(args []string) string {
	if len(args) == 0 || args[0] != "replug" {
		return "it is not ours"
	}
	root := newRoot()
	cmd, rest, err := root.Find(args[1:])
	if err == nil {
		err = cmd.ParseFlags(rest)
	}
	if err == nil {
		err = cmd.ValidateArgs(cmd.Flags().Args())
	}
	if err != nil {
		return err.Error()
	}
	named := cmd.Flags().NArg() > 0 || cmd.Flags().Changed("network") || cmd.Flags().Changed("from")
	if named && under(cmd, owned) && !cmd.Flags().Changed("tenant") {
		return "whose? an operator needs --tenant"
	}
	if under(cmd, local) {
		return ""
	}
	root = newRoot()
	root.SetArgs(args[1:])
	root.SetOut(io.Discard)
	if err := root.Execute(); err == nil || !strings.Contains(err.Error(), "Name your certificates") {
		return fmt.Sprintf("got %v, want that certificates are missing", err)
	}
	return ""
}

// under reports whether a command is one of some, or a verb of one.
func under(cmd *cobra.Command, some []string) bool {
	for _, name := range some {
		if strings.HasPrefix(cmd.CommandPath()+" ", "replug "+name+" ") {
			return true
		}
	}
	return false
}
