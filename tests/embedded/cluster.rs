//! Three servers as one.

use anyhow::Result;
use tidemill::embedded::Cluster;

use crate::{ask, connect, eventually};

#[tokio::test]
async fn a_cluster_replicates_and_outlives_a_node() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    assert_eq!(cluster.url().split(',').count(), 3);
    let client = connect(&cluster.url()).await?;
    let stream = r#"{"name":"THREE","subjects":["three"],"num_replicas":3}"#;
    ask(&client, "$JS.API.STREAM.CREATE.THREE", stream).await?;
    ask(&client, "three", "a message").await?;

    cluster.kill(0).await?;
    assert_eq!(cluster.node(0).pid(), None);
    cluster.restart(0).await?;
    cluster.ready().await?;
    let client = connect(cluster.node(0).url()).await?;
    // The stream elects its own leader.
    let info = eventually(async || ask(&client, "$JS.API.STREAM.INFO.THREE", "").await).await?;
    assert_eq!(info["state"]["messages"], 1);
    cluster.stop().await?;
    Ok(())
}
