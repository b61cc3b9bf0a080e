package main

import (
	"strings"

	"github.com/spf13/cobra"

	"replug/tests/bench"
)

func benchCommand() *cobra.Command {
	o := bench.Options{}
	cmd := &cobra.Command{Use: "bench", Short: "Measure the figures beside their floors", Args: exact(0, "no argument"),
		Example: `  replug bench --out out/bench.json
  replug bench --only traffic --rounds 5`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Bin, err = programs(); err != nil {
				return err
			}
			if o.Helper, err = helper(); err != nil {
				return err
			}
			o.Out = cmd.OutOrStdout()
			return bench.Run(cmd.Context(), o)
		}}
	f := cmd.Flags()
	f.StringVar(&o.File, "out", "out/bench.json", "file for the result")
	f.StringVar(&o.Name, "lab", "bench", "name of the lab to measure in")
	f.IntVar(&o.Rounds, "rounds", 5, "rounds of each interleaved comparison")
	f.IntVar(&o.Swaps, "swaps", 200, "swaps for the percentiles")
	f.StringSliceVar(&o.Only, "only", nil, strings.Join(bench.Parts(), ", ")+" (default: all)")
	return cmd
}
