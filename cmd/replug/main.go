// Command replug is the operator's tool: it speaks the gRPC API of
// replug-server, makes certificates, and builds a lab on one machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Exit codes, the same for every command.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitUnavailable = 5
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string) int {
	root := newRoot()
	root.SetArgs(args)
	understood := false
	root.PersistentPreRun = func(*cobra.Command, []string) { understood = true }
	err := root.ExecuteContext(ctx)
	if err != nil && !understood {
		err = usageError{err}
	}
	if err != nil && !errors.Is(err, silent) {
		fmt.Fprintln(os.Stderr, "replug:", message(err))
	}
	return exitCode(err)
}

func newRoot() *cobra.Command {
	c := &caller{}
	root := &cobra.Command{
		Use:   "replug",
		Short: "Move running VMs between virtual networks, without a reboot",
		Example: `  replug vm swap web-1 --tenant acme --network blue --ip 10.0.0.20 --plan    what would change
  replug vm swap web-1 --tenant acme --network blue --ip 10.0.0.20 --wait    do it, watch it
  replug vm claim web-1 --tenant acme --type small --network red --ip 10.0.0.10 --hostname web-1 --wait
  replug lab up                                                              two hosts on this machine`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	c.flags(root.PersistentFlags())
	root.SetHelpTemplate(helpTemplate)
	root.SetUsageTemplate(usageTemplate)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(tenantCommand(c), networkCommand(c), typeCommand(c), poolCommand(c), vmCommand(c), claimCommand(c),
		swapCommand(c), portCommand(c), vtepCommand(c), groupCommand(c), serviceCommand(c), hostCommand(c),
		traceCommand(c), captureCommand(c), dropsCommand(c), flowsCommand(c), clusterCommand(c), backupCommand(c), restoreCommand(), pkiCommand(),
		labCommand(), demoCommand(), benchCommand())
	return root
}

// A usageError is the caller's: the command line can't be understood.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// An outcomeError is an operation that ended otherwise than asked, with the code
// to exit with.
type outcomeError struct {
	error
	code int
}

func (e outcomeError) Unwrap() error { return e.error }

// silent is the error of a program that has printed its own.
var silent = errors.New("said already")

func exitCode(err error) int {
	var usage usageError
	var outcome outcomeError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &outcome):
		return outcome.code
	case errors.Is(err, context.DeadlineExceeded):
		return exitUnavailable
	}
	switch status.Code(err) {
	case codes.InvalidArgument:
		return exitUsage
	case codes.NotFound:
		return exitNotFound
	case codes.AlreadyExists, codes.FailedPrecondition, codes.Aborted:
		return exitConflict
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		return exitUnavailable
	}
	return exitError
}

// message is what the person reads: the server's own words without gRPC's frame.
func message(err error) string {
	var usage usageError
	if errors.As(err, &usage) {
		return usage.Error() + "\nSee 'replug --help' or the command's --help."
	}
	if s, ok := status.FromError(err); ok && s.Code() != codes.Unknown {
		return s.Message()
	}
	return err.Error()
}

// exact asks for exactly n arguments, and says which.
func exact(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{fmt.Errorf("%s needs %s", cmd.CommandPath(), what)}
		}
		return nil
	}
}

// noun groups the verbs of one kind of object.
func noun(use, short, example string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Example: example, RunE: func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usageError{fmt.Errorf("%s has no verb %q", cmd.CommandPath(), args[0])}
		}
		return cmd.Help()
	}}
	cmd.AddCommand(verbs...)
	return cmd
}
