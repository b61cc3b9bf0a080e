package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want int
	}{
		{"success", nil, exitOK},
		{"no such VM", status.Error(codes.NotFound, "VM web-9 is unknown"), exitNotFound},
		{"another swap runs", fmt.Errorf("start: %w", status.Error(codes.FailedPrecondition, "swap s-7 runs")), exitConflict},
		{"address taken", status.Error(codes.AlreadyExists, "10.0.0.20 is taken"), exitConflict},
		{"standby", status.Error(codes.Unavailable, "s2 leads"), exitUnavailable},
		{"bad address", status.Error(codes.InvalidArgument, "not an address"), exitUsage},
		{"another's VM", status.Error(codes.PermissionDenied, "not yours"), exitError},
		{"swap undone", outcomeError{errors.New("undone"), exitError}, exitError},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, got, c.want)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{"vm", "swap"}, {"vm", "frob"}, {"--frob"}, {"frob"}, {"vm", "list", "-o", "xml"}, {"pool", "set", "small"},
		{"network", "create", "red", "--route", "10.7.0.0/16"}, {"network", "flow-log", "red", "maybe"}, {"port", "group", "web-1"},
		{"port", "group", "web-1", "web", "--none"}, {"group", "create", "web", "--rule", "allow all"}, {"lab", "exec", "h1"}, {"pki", "issue", "host"},
	} {
		if got := run(t.Context(), args); got != exitUsage {
			t.Errorf("replug %s: exit %d, want %d", strings.Join(args, " "), got, exitUsage)
		}
	}
}

// Every command's help begins with an example that names the command.
func TestHelp(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		var out strings.Builder
		cmd.SetOut(&out)
		if err := cmd.Help(); err != nil {
			t.Errorf("%s: %v", cmd.CommandPath(), err)
		}
		first, rest, _ := strings.Cut(out.String(), "\n")
		example, _, _ := strings.Cut(rest, "\n\n")
		if first != "Example:" || !strings.Contains(example, cmd.CommandPath()) {
			t.Errorf("%s: help begins %q, %q", cmd.CommandPath(), first, example)
		}
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() && sub.Name() != "completion" && sub.Name() != "help" {
				walk(sub)
			}
		}
	}
	walk(newRoot())
}
