package queueclient

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkDo measures the client, the wire and a queue that agrees to everything at once.
func BenchmarkDo(b *testing.B) {
	for _, callers := range []int{1, 64, 512} {
		b.Run(fmt.Sprint("callers=", callers), func(b *testing.B) {
			c := newCluster(b, 1)
			c.nodes[0].forget = true
			client := c.client(b, func(o *Options) { o.RPCTimeout = 10 * time.Second })
			var n atomic.Int64
			b.SetParallelism(callers / 2)
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					op := accept(fmt.Sprint(n.Add(1)))
					op.GetAccept().Payload = make([]byte, 1<<10)
					if _, err := client.Do(b.Context(), op); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
