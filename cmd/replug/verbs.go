package main

import (
	"context"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// A question is a verb that makes one call of the API and prints the answer.
type question[M proto.Message] struct {
	use, short, example string
	args                cobra.PositionalArgs
	call                func(ctx context.Context, conn *grpc.ClientConn, args []string) (M, error)
	show                func(M) *table
}

func ask[M proto.Message](c *caller, q question[M]) *cobra.Command {
	return &cobra.Command{Use: q.use, Short: q.short, Example: q.example, Args: q.args,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				m, err := q.call(ctx, conn, args)
				if err != nil {
					return err
				}
				return c.print(cmd, m, func() *table { return q.show(m) })
			})
		}}
}

// given is a flag's value, or nil when the flag is not given: what is not said of a
// thing stays as it is.
func given[T any](f *pflag.FlagSet, flag string, value T) *T {
	if !f.Changed(flag) {
		return nil
	}
	return &value
}

// An order is a verb that makes one call of the API and has nothing to show but
// that it was done.
type order struct {
	use, short, example string
	args                cobra.PositionalArgs
	call                func(ctx context.Context, conn *grpc.ClientConn, name string) error
	done                string // said of the name: "network %s deleted"
}

func (c *caller) tell(o order) *cobra.Command {
	return &cobra.Command{Use: o.use, Short: o.short, Example: o.example, Args: o.args,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				err := o.call(ctx, conn, args[0])
				if err == nil {
					c.say(cmd, o.done, args[0])
				}
				return err
			})
		}}
}
